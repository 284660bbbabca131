"""A store in a folder of its own; nothing is synced, since no test cuts the power."""

import pytest

from gemma3vl_app.store import ConversationStore, database


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the store lies; stores that a test opens there are quick."""
    monkeypatch.setattr(database, "SYNCHRONOUS", "OFF")
    return tmp_path / "conversations"


@pytest.fixture
def store(folder):
    with ConversationStore(folder) as opened:
        yield opened
