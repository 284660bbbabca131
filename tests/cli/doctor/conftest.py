"""A hub on this machine."""

import pytest
from huggingface_hub import constants

from gemma3vl_app.cli.checks import hub
from tests.cli.doctor.looking import TOKEN
from tests.loading.fake_hub import FakeHub


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A hub on this machine that has the gated model; nothing of it is in the caches."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("GEMMA3VL_CACHE", str(tmp_path / "own"))
    for name in (*hub.TOKENS, *hub.OFFLINE, "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub({hub.GATED: {"config.json": b"{}", "model.safetensors": b"x" * 2000}}) as running:
        running.gated.add(hub.GATED)
        running.tokens = {TOKEN: True, "hf_not_accepted": False}
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        yield running
