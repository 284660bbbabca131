"""Work in the background: bounded in bytes, in order, and over in time."""

import threading
import time

import pytest

from gemma3vl_app.engine.background import Background


@pytest.fixture
def background():
    made = Background("test", pending_bytes=100)
    yield made
    made.close(1.0)


def test_jobs_run_in_order_in_one_other_thread(background):
    ran = []
    for number in range(5):
        assert background.offer(lambda n=number: ran.append((n, threading.get_ident())), 10)
    assert background.wait(5.0)
    assert [number for number, _ in ran] == [0, 1, 2, 3, 4]
    assert {thread for _, thread in ran} != {threading.get_ident()}


def test_too_much_is_refused_but_never_the_only_job(background):
    held = threading.Event()
    assert background.offer(held.wait, 1000)  # larger than everything, and alone
    assert not background.offer(lambda: None, 1)
    held.set()
    assert background.wait(5.0)
    assert background.offer(lambda: None, 60)


def test_a_job_that_fails_stops_no_other(background):
    ran = []
    background.offer(lambda: 1 / 0, 1)
    background.offer(lambda: ran.append(1), 1)
    assert background.wait(5.0)
    assert ran == [1]


def test_closing_does_what_waits(background):
    ran = []
    for number in range(5):
        background.offer(lambda n=number: (time.sleep(0.02), ran.append(n)), 10)
    background.close(10.0)
    assert ran == [0, 1, 2, 3, 4]
    assert not background.offer(lambda: None, 1)


def test_closing_takes_no_longer_than_it_may():
    held, ran = threading.Event(), []
    slow = Background("test", pending_bytes=100)
    slow.offer(held.wait, 10)
    slow.offer(lambda: ran.append(1), 10)
    began = time.monotonic()
    slow.close(0.2)
    assert time.monotonic() - began < 5
    held.set()
    slow._thread.join(5.0)
    assert not slow._thread.is_alive()
    assert ran == []  # too late
