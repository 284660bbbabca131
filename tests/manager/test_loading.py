"""A model is loaded once for everybody who asks; whoever listens hears how it goes."""

import time

import pytest

from gemma3vl_app.errors import LoadError
from gemma3vl_app.manager import Freed
from tests.manager.loads import in_threads, kinds


def test_a_loaded_model_is_current_and_resident(manager):
    before = time.time()
    backend = manager.load("a")
    assert manager.current is backend
    (resident,) = manager.resident
    assert (resident.name, resident.state, resident.current) == ("a", "ready", True)
    assert before <= resident.since <= time.time()
    backend.add_adapter("style", "folder")
    assert manager.resident[0].adapters == ("style",)


def test_the_same_wish_gives_the_same_backend(manager, loads):
    first = manager.load("a", weights="nf4", max_memory={"cpu": 1, "cuda:0": 2}, revision=None)
    again = manager.load("a", max_memory={"cuda:0": 2, "cpu": 1}, weights="nf4", progress=print)
    other = manager.load("a", weights="int8")
    assert first is again
    assert first is not other
    assert [resident.name for resident in manager.resident] == ["a", "a (2)"]
    assert len(loads.calls) == 2


def test_a_path_counts_as_the_same_however_it_is_written(manager, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert manager.load("model") is manager.load(tmp_path / "model")
    assert manager.resident[0].name == "model"


def test_many_threads_that_ask_for_one_model_load_it_once(manager, loads):
    loads.seconds = 0.1
    backends = in_threads(*[lambda: manager.load("a")] * 8)
    assert len({id(backend) for backend in backends}) == 1
    assert loads.calls == ["a"]


def test_loads_for_the_same_devices_take_turns(manager, loads):
    loads.seconds = 0.05
    in_threads(*[lambda name=name: manager.load(name) for name in "abcd"])
    assert loads.most_running == 1
    assert len(manager.resident) == 4


def test_loads_for_different_devices_run_at_once(manager, loads):
    loads.seconds = 0.3
    in_threads(
        lambda: manager.load("a", device_map="cuda:0"),
        lambda: manager.load("b", device_map="cuda:1"),
        lambda: manager.load("c", device_map={"": "cuda:1"}),
    )
    assert loads.most_running == 2


def test_a_failed_load_tells_everybody_who_waited_and_can_be_tried_again(manager, loads, events):
    loads.seconds, loads.failing = 0.1, {"a"}
    errors = in_threads(*[lambda: manager.load("a")] * 4)
    assert all(isinstance(error, LoadError) and "damaged" in str(error) for error in errors)
    assert loads.calls.count("a") < 4
    assert manager.resident == ()
    assert ("failed", "a") in kinds(events)
    loads.failing = set()
    assert manager.load("a") is manager.current


def test_a_defect_while_loading_is_no_riddle(manager, events):
    manager._load = lambda source, **options: 1 / 0
    with pytest.raises(ZeroDivisionError):
        manager.load("a")
    assert events[-1].message == "a was not loaded; the log has the details."
    assert manager.resident == ()


def test_an_interrupted_load_leaves_nothing_behind(manager):
    def interrupted(source, **options):
        raise KeyboardInterrupt

    load, manager._load = manager._load, interrupted
    with pytest.raises(KeyboardInterrupt):
        manager.load("a")
    manager._load = load
    assert manager.load("a") is manager.current


# --- events ---


def test_events_tell_the_whole_story(manager, events):
    heard = []
    manager.load("a", progress=heard.append)
    manager.swap("b")
    assert kinds(events) == [
        ("loading", "a"),
        ("ready", "a"),
        ("draining", "a"),
        ("unloaded", "a"),
        ("loading", "b"),
        ("ready", "b"),
    ]
    steps = [event for event in events if event.progress]
    assert [event.message for event in steps] == ["Half of a", "Half of b"]
    assert steps[0].progress == heard[0]
    assert isinstance(events[kinds(events).index(("unloaded", "a")) + 1].freed, Freed)


def test_a_listener_that_fails_breaks_nothing(manager, caplog):
    def broken(event):
        raise RuntimeError("a page that is gone")

    manager.subscribe(broken)
    heard = []
    unsubscribe = manager.subscribe(heard.append)
    manager.load("a")
    assert kinds(heard) == [("loading", "a"), ("ready", "a")]
    assert "a listener failed" in caplog.text
    unsubscribe()
    unsubscribe()
    manager.unload("a")
    assert len(kinds(heard)) == 2


def test_a_listener_may_ask_the_manager(manager):
    seen = []
    manager.subscribe(lambda event: seen.append([r.state for r in manager.resident]))
    manager.load("a")
    manager.unload("a")
    assert seen[0] == ["loading"]
    assert ["ready"] in seen
    assert ["draining"] in seen
    assert seen[-1] == []
