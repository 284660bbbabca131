"""A manager of scripted models on a roomy machine, its loads and its events."""

import pytest

from gemma3vl_app.manager import ModelManager
from tests.manager.loads import ROOMY, Loads


@pytest.fixture
def loads():
    return Loads()


@pytest.fixture
def manager(loads):
    with ModelManager(loads, machine=lambda: ROOMY) as made:
        yield made


@pytest.fixture
def events(manager):
    heard = []
    manager.subscribe(heard.append)
    return heard
