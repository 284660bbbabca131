"""A GPU that is lost ends the engine at once; an error of one call on it costs one request.

There is no GPU here: torch's error is raised by hand, and the next call on the device fails or not.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gemma3vl_app.engine.failures import as_told
from tests.api.servers import wait_until
from tests.faults.model_server import said, served_model
from tests.faults.next_answer import NEXT_WITHIN_SEC, next_answer_within

WORDS = "CUDA error: an illegal memory access was encountered at 0x7f0012345678"


@pytest.fixture
def model(tiny):
    with served_model(tiny) as model:
        yield model


def fail(_):
    raise torch.AcceleratorError(WORDS)


def synchronize_fails():
    raise torch.AcceleratorError(WORDS)


@pytest.mark.parametrize("stage", ["vision", "prefill", "decode"])
def test_a_lost_device_ends_the_engine_and_everybody_is_told(model, stage, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize_fails)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # which prints what ended it
    with ThreadPoolExecutor(3) as pool, model.before(stage, fail):
        asked = [
            pool.submit(model.ask, f"Question {number}", picture="red", tokens=40)
            for number in range(3)
        ]
        replies = [each.result() for each in asked]
    assert {reply.status_code for reply in replies} <= {500, 503}
    assert not any("0x" in reply.text or "CUDA" in reply.text for reply in replies)
    wait_until(lambda: model.backend.engine.failed)
    assert model.ask("And now?").status_code == 503


def test_whoever_it_was_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize_fails)
    told = str(as_told(torch.AcceleratorError(WORDS)))
    assert "The GPU has failed" in told and "start the program again" in told
    assert "0x" not in told


def test_an_error_of_one_call_costs_one_request(model, monkeypatch):
    alone = said(model.ask("Hello", tokens=4))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    with model.before("prefill", fail):
        reply = model.ask("A picture", picture="red")
    assert reply.status_code == 500
    assert "others go on" in reply.json()["error"]["message"]
    next_answer_within(NEXT_WITHIN_SEC, lambda: model.ask("Hello"))
    assert said(model.ask("Hello", tokens=4)) == alone
