"""Models come and go: once each, one load at a time, and nobody's answer vanishes unexplained."""

import random
import threading
import time

import pytest

from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import EngineError, Gemma3VLError, LoadError
from gemma3vl_app.generation import Progress
from gemma3vl_app.manager import ModelManager
from gemma3vl_app.messages import Conversation
from gemma3vl_app.testing import ScriptedBackend, tiny_checkpoint


class Loader:
    """Loads scripted backends; keeps what was asked, how many loads ran at once, what is open."""

    def __init__(self, seconds=0.0, **settings):
        self.seconds, self.settings = seconds, settings
        self.sources, self.open = [], []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.broken = set()

    def __call__(self, source, *, progress, **options):
        with self.lock:
            self.sources.append(source)
            self.running += 1
            self.most = max(self.most, self.running)
        progress(Progress("load", 1, 2, "steps", f"half of {source}"))
        time.sleep(self.seconds)
        with self.lock:
            self.running -= 1
            if source in self.broken:
                raise LoadError(f"{source} is broken. Copy it again.")
            backend = ScriptedBackend(**self.settings)
            self.open.append(backend)
        return backend


@pytest.fixture
def nothing_fits(monkeypatch):
    """As if two models never fitted side by side."""
    monkeypatch.setattr("gemma3vl_app.manager._fits_now", lambda source, options: False)


@pytest.fixture
def everything_fits(monkeypatch):
    monkeypatch.setattr("gemma3vl_app.manager._fits_now", lambda source, options: True)


def in_threads(count, function):
    results = []
    threads = [
        threading.Thread(target=lambda n=number: results.append(function(n)))
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    return results


def test_a_model_is_loaded_once_however_many_ask_at_once():
    load = Loader(seconds=0.1)
    manager = ModelManager(load)
    backends = in_threads(8, lambda n: manager.load("demo"))
    assert load.sources == ["demo"]
    assert len(backends) == 8 and len(set(map(id, backends))) == 1
    assert manager.current is backends[0]


def test_other_options_are_another_model():
    load = Loader()
    manager = ModelManager(load)
    one, other = manager.load("demo"), manager.load("demo", weights="int8")
    assert one is not other
    assert [each.name for each in manager.resident] == ["demo", "demo (2)"]


def test_loads_on_the_same_devices_wait_for_one_another_and_others_do_not():
    load = Loader(seconds=0.2)
    manager = ModelManager(load)
    in_threads(3, lambda n: manager.load(f"m{n}", device_map="cuda:0"))
    assert load.most == 1
    in_threads(3, lambda n: manager.load(f"n{n}", device_map=f"cuda:{n}"))
    assert load.most == 3
    load.most = 0
    in_threads(2, lambda n: manager.load(f"o{n}", **({"device_map": "cuda:1"} if n else {})))
    assert load.most == 1, "a load without a device may use any"


def test_listeners_hear_of_every_stage_and_cannot_break_a_load():
    manager = ModelManager(Loader())
    heard = []

    def broken(event):
        raise RuntimeError("not my day")

    manager.subscribe(broken)
    stop = manager.subscribe(heard.append)
    manager.load("demo")
    manager.unload("demo")
    stages = [event.stage for event in heard]
    assert stages == ["loading", "loading", "ready", "draining", "unloaded"]
    assert heard[1].progress.message == "half of demo"
    assert heard[-1].freed.name == "demo"
    stop()
    manager.load("demo")
    assert len(heard) == len(stages)


def test_a_failed_load_is_told_to_all_who_wait_and_leaves_nothing():
    load = Loader(seconds=0.1)
    load.broken.add("bad")
    manager = ModelManager(load)
    heard = []
    manager.subscribe(heard.append)

    def attempt(number):
        with pytest.raises(LoadError, match="bad is broken"):
            manager.load("bad")

    in_threads(4, attempt)
    assert manager.resident == () and manager.current is None
    assert heard[-1].stage == "failed" and "Copy it again" in heard[-1].message


def test_a_swap_with_room_loads_first_and_lets_the_old_answers_finish(everything_fits):
    load = Loader(chunks=["one ", "two ", "three"], seconds_per_chunk=0.15)
    manager = ModelManager(load, finish_sec=10)
    old = manager.load("old")
    stream = old.stream(Conversation().user("Hello"))
    new = manager.swap("new")
    assert manager.current is new and new is not old
    assert stream.answer.text == "one two three"
    until(lambda: [each.name for each in manager.resident] == ["new"])
    with pytest.raises(EngineError):
        old.stream(Conversation().user("Hello?"))


def test_a_swap_without_room_lets_the_old_model_go_first(nothing_fits):
    load = Loader()
    manager = ModelManager(load)
    manager.load("old")
    heard = []
    manager.subscribe(lambda event: heard.append((event.stage, event.name)))
    new = manager.swap("new")
    assert heard.index(("unloaded", "old")) < heard.index(("loading", "new"))
    assert manager.current is new
    assert len(manager.resident) == 1


def test_an_answer_that_takes_too_long_is_ended_with_a_reason(nothing_fits):
    manager = ModelManager(Loader(chunks=["word "] * 200, seconds_per_chunk=0.05), finish_sec=0.2)
    chat = Chat(manager.load("old"))
    stream = chat.stream("Go on and on")
    manager.swap("new")
    with pytest.raises(EngineError) as caught:
        _ = stream.answer
    assert str(caught.value)
    with pytest.raises(EngineError):
        chat.ask("And now?")


def test_the_old_model_comes_back_when_the_new_one_cannot_be_loaded(nothing_fits):
    load = Loader()
    load.broken.add("bad")
    manager = ModelManager(load)
    manager.load("old")
    with pytest.raises(LoadError, match="bad is broken"):
        manager.swap("bad")
    assert [each.name for each in manager.resident] == ["old"]
    assert manager.current is not None
    assert Chat(manager.current).ask("Hello").text == "Hello"


def test_it_is_told_when_the_old_model_does_not_come_back_either(nothing_fits):
    load = Loader()
    load.broken.add("bad")
    manager = ModelManager(load)
    manager.load("old")
    load.broken.add("old")
    with pytest.raises(LoadError, match=r"bad is broken.*old had been unloaded.*old is broken"):
        manager.swap("bad")
    assert manager.current is None


def test_unloading_what_is_not_there_names_what_is():
    manager = ModelManager(Loader())
    manager.load("demo")
    with pytest.raises(LoadError, match="'demo'"):
        manager.unload("other")


def test_a_closed_manager_lets_go_of_everything_and_loads_no_more():
    load = Loader()
    with ModelManager(load) as manager:
        manager.load("a")
        manager.load("b")
    assert manager.resident == ()
    with pytest.raises(LoadError, match="closed"):
        manager.load("a")


def test_threads_that_do_everything_at_once_never_hang_or_lose_a_model(nothing_fits):
    load = Loader(seconds=0.01, chunks=["a ", "b"], seconds_per_chunk=0.005)
    load.broken.add("m3")
    manager = ModelManager(load, finish_sec=0.05)
    stop = time.monotonic() + 4
    surprises = []

    def play(number):
        dice = random.Random(number)
        while time.monotonic() < stop:
            name = f"m{dice.randrange(4)}"
            try:
                match dice.randrange(4):
                    case 0:
                        manager.load(name)
                    case 1:
                        manager.swap(name)
                    case 2:
                        manager.unload(name)
                    case _:
                        if (backend := manager.current) is not None:
                            assert backend.stream(Conversation().user("Hi")).answer.text
            except Gemma3VLError:
                pass
            except Exception as error:
                surprises.append(error)

    in_threads(6, play)
    assert not surprises
    until(lambda: all(each.state == "ready" for each in manager.resident))
    manager.close()
    assert manager.resident == ()


def test_memory_comes_back_when_a_real_model_goes(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", layers=6)
    manager = ModelManager()
    manager.load("demo")  # what stays for good: libraries, thread pools
    manager.unload("demo")
    backend = manager.load(str(folder), weights="fp32")  # fp32: a copy, no memory map
    weights = sum(each.weights for each in backend.plan.bytes_by_device.values())
    assert weights > 60 << 20
    Chat(backend).ask("Hello")
    del backend
    freed = manager.unload(str(folder))
    assert freed.bytes_by_device["cpu"] > 0.8 * weights
    assert freed.total_bytes >= freed.bytes_by_device["cpu"]


def until(condition, seconds=10.0):
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, "it never came"
        time.sleep(0.01)
