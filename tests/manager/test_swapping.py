"""One model takes the place of another; where that fails, the old one is there again."""

import pytest

from gemma3vl_app.errors import EngineError, LoadError
from tests.manager.loads import HELLO, in_threads, kinds


def test_without_room_the_old_model_goes_first(manager, events):
    manager.load("a")
    backend = manager.swap("b")
    assert manager.current is backend
    assert [resident.name for resident in manager.resident] == ["b"]
    assert kinds(events).index(("unloaded", "a")) < kinds(events).index(("loading", "b"))


def test_a_model_that_fits_beside_is_loaded_while_the_old_one_answers(manager, events):
    old = manager.load("4b-it")
    manager.subscribe(lambda event: event.kind == "loading" and old.stream(HELLO))
    backend = manager.swap("12b-it")
    assert manager.current is backend
    assert [resident.name for resident in manager.resident] == ["12b-it"]
    assert kinds(events).index(("ready", "12b-it")) < kinds(events).index(("draining", "4b-it"))
    assert len(old.requests) == 2


def test_a_swap_that_fails_brings_the_old_model_back(manager, loads, events):
    old = manager.load("a", weights="nf4")
    loads.failing = {"b"}
    with pytest.raises(LoadError, match=r"b is damaged\. .* a was loaded again"):
        manager.swap("b")
    assert [resident.name for resident in manager.resident] == ["a"]
    assert manager.current is manager.load("a", weights="nf4")
    assert manager.current is not old
    assert kinds(events)[-3:] == [("failed", "b"), ("loading", "a"), ("ready", "a")]


def test_a_swap_that_fails_beside_keeps_the_old_model(manager, loads):
    old = manager.load("4b-it")
    loads.failing = {"12b-it"}
    with pytest.raises(LoadError, match="4b-it is still loaded"):
        manager.swap("12b-it")
    assert manager.current is old
    assert old.stream(HELLO).answer.text


def test_a_swap_that_leaves_nothing_says_so(manager, loads):
    manager.load("a")
    loads.failing = {"a", "b"}
    with pytest.raises(LoadError, match="a could not be loaded again either: a is damaged"):
        manager.swap("b")
    assert (manager.resident, manager.current) == ((), None)
    loads.failing = set()
    assert manager.swap("b") is manager.current


def test_swapping_to_what_is_there(manager, loads):
    a = manager.load("a")
    b = manager.load("b")
    assert manager.swap("a") is a
    assert len(manager.resident) == 2
    assert manager.swap("b") is b
    assert [resident.name for resident in manager.resident] == ["b"]
    assert loads.calls == ["a", "b"]


def test_threads_that_swap_at_once_end_with_one_model(manager):
    manager.load("a")
    swapped = in_threads(*[lambda name=name: manager.swap(name) for name in "bcdebcde"])
    overtaken = [each for each in swapped if isinstance(each, EngineError)]
    assert all("was unloaded again meanwhile" in str(each) for each in overtaken)
    assert len(overtaken) < len(swapped)
    assert manager.current in swapped
    assert len(manager.resident) == 1
    assert manager.resident[0].current
