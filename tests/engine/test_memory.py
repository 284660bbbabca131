"""Memory comes back, also what a server has set aside from Python's search for unused things."""

import gc
import weakref

import pytest

from gemma3vl_app.engine.memory import give_back


class InACircle:
    """Something that only Python's search finds, like a model."""

    def __init__(self):
        self.me = self


pytestmark = pytest.mark.usefixtures("whole_searches")


@pytest.fixture
def set_aside():
    things = [InACircle()]
    gc.freeze()
    yield things
    gc.unfreeze()


def test_what_was_set_aside_is_freed_once_nobody_uses_it(set_aside):
    gone = weakref.ref(set_aside[0])
    set_aside.clear()
    gc.collect()
    assert gone() is not None
    give_back()
    assert gone() is None


def test_what_is_in_use_stays_set_aside(set_aside):
    give_back()
    assert gc.get_freeze_count() > 0


def test_nothing_is_set_aside_where_nothing_was():
    give_back()
    assert gc.get_freeze_count() == 0
