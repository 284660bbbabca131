"""Torch's worker threads are there while somebody computes, and only then."""

import os
import sys
import threading
from collections.abc import Callable

import pytest
import torch

from gemma3vl_app.engine.workers import release_workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")


def threads_here() -> int:
    return len(os.listdir("/proc/self/task"))


def compute() -> None:
    """Compute something that torch shares out over the threads it may use."""
    torch.ones(1 << 22).exp_()


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_workers_end_when_they_are_released_and_come_back_with_the_next_work():
    counts = []

    def work() -> None:
        torch.set_num_threads(3)
        for step in (compute, release_workers, compute, release_workers, release_workers):
            step()
            counts.append(threads_here())

    in_a_thread(work)
    before = counts[1]
    assert counts == [before + 2, before, before + 2, before, before]


def test_an_engine_that_has_nothing_to_do_keeps_no_workers(make_backend):
    engine = make_backend().engine

    def work() -> int:
        torch.set_num_threads(3)  # of the engine's thread alone
        compute()
        return threads_here()

    working = engine.call(work)
    for _ in range(3):  # a job sees what the thread had left when the one before it ended
        waiting = engine.call(threads_here)
    assert waiting == working - 2


def test_whoever_loads_a_model_keeps_no_workers(make_backend):
    counts = []

    def work() -> None:
        torch.set_num_threads(3)
        compute()
        counts.append(threads_here())
        make_backend()
        counts.append(threads_here())

    in_a_thread(work)
    assert counts[1] == counts[0] - 2 + 1  # and the engine's own thread
