"""Models come, go and take each other's place; memory comes back, nobody waits for ever."""

import random
import threading
import time
from dataclasses import replace

import pytest

from gemma3vl_app import hardware
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError, EngineError, Gemma3VLError, LoadError
from gemma3vl_app.generation import Greedy, Progress
from gemma3vl_app.manager import Freed, ModelManager
from gemma3vl_app.messages import Conversation
from gemma3vl_app.planning import plan
from gemma3vl_app.planning.beside import devices_of, fits_beside, overlap
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES

HELLO = Conversation().user("one two three four five six")
ROOMY = hardware.Machine(memory_bytes=200 << 30, available_bytes=200 << 30)


class Loads:
    """A load function over scripted backends, which notes what it was asked and may be told."""

    def __init__(self, seconds=0.0, seconds_per_chunk=0.0):
        self.seconds = seconds
        self.seconds_per_chunk = seconds_per_chunk
        self.calls, self.made, self.running, self.most_running = [], [], 0, 0
        self.failing: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, source, *, progress=None, **options):
        with self._lock:
            self.calls.append(source)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            progress(Progress("load", 1, 2, "bytes", f"Half of {source}"))
            time.sleep(self.seconds)
            if source in self.failing:
                raise LoadError(f"{source} is damaged. Download it again.")
            backend = ScriptedBackend(
                seconds_per_chunk=self.seconds_per_chunk,
                capabilities=replace(DEFAULT_CAPABILITIES, model=str(source)),
            )
            with self._lock:
                self.made.append(backend)
            return backend
        finally:
            with self._lock:
                self.running -= 1


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


def kinds(events):
    return [(event.kind, event.model) for event in events if event.progress is None]


def in_threads(*functions):
    """Run functions at once; returns what each returned or raised."""
    results = [None] * len(functions)

    def run(number, function):
        try:
            results[number] = function()
        except Exception as error:
            results[number] = error

    threads = [
        threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    return results


# --- loading ---


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


# --- going ---


def test_running_answers_finish_before_their_model_goes(manager, loads):
    loads.seconds_per_chunk = 0.02
    stream = manager.load("a").stream(HELLO)
    freed = manager.unload("a", finish_sec=10)
    assert stream.answer.text == HELLO.messages[0].text
    assert isinstance(freed, Freed)
    assert (manager.resident, manager.current) == ((), None)


def test_answers_that_take_too_long_are_told_what_to_do(manager, loads):
    loads.seconds_per_chunk = 0.5
    chat = Chat(manager.load("a"))
    stream = chat.stream("one two three four five six")
    manager.unload("a", finish_sec=0.05)
    with pytest.raises(EngineError, match="'a' has been closed"):
        _ = stream.answer
    with pytest.raises(EngineError, match="'a' has been closed"):
        chat.ask("And now?")


def test_a_model_that_drains_takes_no_requests_and_can_be_loaded_anew(manager, loads):
    loads.seconds_per_chunk = 0.05
    old = manager.load("a")
    stream = old.stream(HELLO)
    unloading = threading.Thread(target=manager.unload, args=("a",))
    unloading.start()
    while not old._closed:
        time.sleep(0.001)
    assert manager.resident[0].state == "draining"
    assert manager.current is None
    with pytest.raises(EngineError, match="closed"):
        old.stream(HELLO)
    new = manager.load("a")  # waits for the old one's memory
    assert stream.done
    assert new is not old
    unloading.join()


def test_unloading_twice_at_once_gives_both_the_same(manager, loads):
    loads.seconds_per_chunk = 0.05
    manager.load("a").stream(HELLO)
    first, second = in_threads(*[lambda: manager.unload("a")] * 2)
    assert first is second or isinstance(second, LoadError) or isinstance(first, LoadError)
    with pytest.raises(LoadError, match=r"No model 'a' is loaded\. Loaded now: none"):
        manager.unload("a")


def test_a_backend_that_cannot_close_is_gone_all_the_same(manager, caplog):
    manager.load("a").close = lambda **options: 1 / 0
    manager.unload("a")
    assert manager.resident == ()
    assert "closing a failed" in caplog.text


def test_a_closed_manager_lets_everything_go(manager, loads):
    manager.load("a")
    manager.load("b")
    manager.close()
    manager.close()
    assert manager.resident == ()
    for backend in loads.made:
        with pytest.raises(EngineError):
            backend.stream(HELLO)
    with pytest.raises(EngineError, match="manager has been closed"):
        manager.load("c")


# --- one in place of another ---


def test_without_room_the_old_model_goes_first(manager, events):
    manager.load("a")
    backend = manager.swap("b")
    assert manager.current is backend
    assert [resident.name for resident in manager.resident] == ["b"]
    assert kinds(events).index(("unloaded", "a")) < kinds(events).index(("loading", "b"))


def test_a_model_that_fits_beside_is_loaded_while_the_old_one_answers(loads):
    with ModelManager(loads, machine=lambda: ROOMY) as manager:
        events = []
        manager.subscribe(events.append)
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


def test_a_swap_that_fails_beside_keeps_the_old_model(loads):
    with ModelManager(loads, machine=lambda: ROOMY) as manager:
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
    in_threads(*[lambda name=name: manager.swap(name) for name in "bcdebcde"])
    assert len(manager.resident) == 1
    assert manager.resident[0].current


# --- what fits, what waits ---


def test_what_fits_beside_depends_on_what_is_left():
    wanted = plan("4b-it", weights="bf16", machine=ROOMY)
    need = wanted.bytes_by_device["cpu"].total
    for room, fits in ((need * 2, True), (need // 2, False)):
        machine = hardware.Machine(memory_bytes=200 << 30, available_bytes=room)
        assert fits_beside("4b-it", {"weights": "bf16"}, machine, wanted) is fits
    assert not fits_beside("no such model", {}, ROOMY, None)


def test_a_model_that_would_be_placed_worse_beside_another_does_not_fit():
    gpu = hardware.KNOWN_GPUS["rtx-4090"]
    machine = hardware.Machine(
        memory_bytes=64 << 30,
        available_bytes=64 << 30,
        gpus=(replace(gpu, free_bytes=6 << 30),),
    )
    other = plan("12b-it", machine=replace(machine, gpus=(gpu,)))
    assert plan("4b-it", machine=machine).fits
    assert not fits_beside("4b-it", {}, machine, other)
    assert fits_beside("4b-it", {"weights": "nf4"}, machine, other)


def test_devices_of_a_wish():
    assert devices_of({}) is None
    assert devices_of({"device_map": "cuda:1"}) == {"cuda:1"}
    assert devices_of({"device_map": {"a": "mps", "b": "disk"}}) == {"cpu"}
    assert devices_of({"max_memory": {"cuda:0": "1GiB", "cpu": 3}}) == {"cuda:0", "cpu"}
    assert overlap(None, frozenset(["cpu"]))
    assert not overlap(frozenset(["cuda:0"]), frozenset(["cpu"]))


# --- real models ---


def wide_checkpoint(folder):
    """The tiny checkpoint with far wider layers: some 190 MB in fp32 besides the embeddings."""
    import json

    from safetensors.torch import save_file

    from gemma3vl_app.loading import base_270m_folder
    from gemma3vl_app.testing import tiny

    config = tiny._config(6, 32)
    config["text_config"]["intermediate_size"] = 40_000
    full = tiny.Gemma3Config.from_dict(json.loads(json.dumps(config)))
    folder.mkdir()
    save_file(
        {tiny._hub_name(n): t for n, t in tiny._random_weights(full, 0).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(tiny._PREPROCESSOR))
    (folder / "tokenizer.json").symlink_to(base_270m_folder() / "tokenizer.json")
    return folder


def test_the_memory_of_a_real_model_comes_back(tmp_path, tiny, monkeypatch):
    from gemma3vl_app.engine.memory import give_back
    from gemma3vl_app.loading.cache import CACHE_VARIABLE
    from tests.loading.peft_adapters import KINDS, save_adapter

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = wide_checkpoint(tmp_path / "wide")
    adapter = save_adapter(folder, tmp_path / "adapter", **KINDS["plain"])
    with ModelManager() as manager:
        manager.load(tiny, weights="fp32")  # what any first load leaves behind is not the question
        give_back()
        backend = manager.load(folder, weights="fp32", adapters={"a": adapter})
        stream = backend.stream(HELLO, sampling=Greedy(), max_new_tokens=4, adapter="a")
        assert len(stream.answer.tokens) == 4
        resident = manager.resident[1]
        weights = resident.plan.bytes_by_device["cpu"].weights
        assert weights > 200 << 20
        assert resident.memory["cpu"] > 0.8 * weights
        freed = manager.unload("wide")
        print(f"weights {weights >> 20} MiB, freed {freed.total >> 20} MiB")
        assert 0.8 * weights < freed.total < 1.5 * weights
        with pytest.raises(EngineError, match="'wide' has been closed"):
            backend.stream(HELLO)


@pytest.mark.parametrize("real", [False, True])
def test_threads_at_random_end_in_order(tiny, real):
    """No deadlock, no error but ours, and in the end one model at most."""
    if real:
        manager = ModelManager()
        names = [tiny, tiny]
        options = [{"weights": "fp32"}, {"weights": "fp32", "context_tokens": 2048}]
    else:
        loads = Loads(seconds=0.002, seconds_per_chunk=0.002)
        manager = ModelManager(loads, machine=lambda: ROOMY)
        names, options = ["a", "b", "4b-it"], [{}, {"device_map": "cuda:0"}, {}]
    until = time.monotonic() + (6 if real else 4)
    latest = until + 60  # on a busy machine, until enough has happened
    done = []

    def work(seed):
        chosen = random.Random(seed)
        while (now := time.monotonic()) < until or (done.count("well") <= 10 and now < latest):
            which = chosen.randrange(len(names))
            finish_sec = chosen.choice([0, 0.01, 1])
            try:
                match chosen.choice(["load", "swap", "unload", "stream", "stream", "stream"]):
                    case "load":
                        manager.load(names[which], **options[which])
                    case "swap":
                        manager.swap(names[which], finish_sec=finish_sec, **options[which])
                    case "unload" if manager.resident:
                        name = chosen.choice(manager.resident or [None]).name
                        manager.unload(name, finish_sec=finish_sec)
                    case "stream" if (backend := manager.current) is not None:
                        with backend.stream(HELLO, max_new_tokens=5) as stream:
                            _ = stream.answer
                done.append("well")
            except Gemma3VLError as error:
                done.append(type(error).__name__)
            except AttributeError as error:  # the list was empty by then
                assert "NoneType" in str(error)

    results = in_threads(*[lambda seed=seed: work(seed) for seed in range(8 if not real else 4)])
    assert results == [None] * len(results)
    assert done.count("well") > 10
    assert set(done) <= {"well", "EngineError", "LoadError"}
    final = manager.swap(names[0], **options[0])
    for resident in manager.resident[:]:
        if not resident.current:
            manager.unload(resident.name)
    assert [resident.current for resident in manager.resident] == [True]
    assert final.stream(HELLO, max_new_tokens=3).answer.usage.completion_tokens <= 3
    manager.close()
    assert manager.resident == ()
    if not real:
        closed = [backend for backend in loads.made if backend._closed]
        assert len(closed) == len(loads.made)
    with pytest.raises((EngineError, ConversationError)):
        final.stream(HELLO)
