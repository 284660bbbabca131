"""A model that hangs, or whose thread has died, is told as such: 503 in time, not silence."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.api.servers import HAPPENS_WITHIN_SEC, wait_until
from tests.faults.model_server import Barrier, said, served_model
from tests.faults.next_answer import NEXT_WITHIN_SEC, next_answer_within

STALLED_SEC = 0.3


def status_of(model, path):
    return httpx.get(model.server.address + path, timeout=HAPPENS_WITHIN_SEC).status_code


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_model_that_hangs_refuses_and_comes_back_by_itself(tiny, stage):
    with served_model(tiny, stalled_sec=STALLED_SEC) as model, ThreadPoolExecutor(4) as pool:
        wait_until(lambda: status_of(model, "/readyz") == 200)
        expected = said(model.ask("Hello"))
        barrier = Barrier()
        with model.before(stage, barrier):
            stuck = pool.submit(model.ask, "I hang " * 20, tokens=50)
            streaming = pool.submit(model.ask, "I hang, too", tokens=50, stream=True)
            assert barrier.reached.wait(HAPPENS_WITHIN_SEC)
            wait_until(lambda: status_of(model, "/readyz") == 503)
            assert status_of(model, "/healthz") == 200
            late = model.ask("I come later")
            assert (late.status_code, late.json()["error"]["code"]) == (503, "model_unavailable")
            assert late.headers["retry-after"] == "5"
            # Those who wait are told as well, although the model has not moved.
            assert stuck.result(HAPPENS_WITHIN_SEC).status_code == 503
            assert "makes no progress" in streaming.result(HAPPENS_WITHIN_SEC).text
            assert not barrier.go_on.is_set()
            barrier.go_on.set()
            next_answer_within(NEXT_WITHIN_SEC, lambda: model.ask("Is it back?"))
            assert status_of(model, "/readyz") == 200
        assert said(model.ask("Hello")) == expected


def test_a_model_whose_thread_dies_leaves_nobody_waiting(tiny, monkeypatch):
    with served_model(tiny) as model, ThreadPoolExecutor(4) as pool:
        barrier = Barrier()
        monkeypatch.setattr(threading, "excepthook", lambda _: None)
        with model.before("decode", barrier):
            asked = [pool.submit(model.ask, f"Question {n}", tokens=50) for n in range(3)]
            assert barrier.reached.wait(HAPPENS_WITHIN_SEC)
            monkeypatch.setattr(model.backend.engine, "_admit", lambda: 1 / 0)
            barrier.go_on.set()
            replies = [each.result(HAPPENS_WITHIN_SEC) for each in asked]
        assert [reply.status_code for reply in replies] == [503] * 3
        assert {reply.json()["error"]["code"] for reply in replies} == {"model_unavailable"}
        assert status_of(model, "/readyz") == 503
        assert status_of(model, "/healthz") == 200
        assert model.ask("And now?").status_code == 503
