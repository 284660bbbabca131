"""Threads that load, swap, unload and ask at random, on scripted and on real models."""

import random
import time

import pytest

from gemma3vl_app.errors import ConversationError, EngineError, Gemma3VLError
from gemma3vl_app.manager import ModelManager
from tests.manager.loads import HELLO, ROOMY, Loads, in_threads


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
