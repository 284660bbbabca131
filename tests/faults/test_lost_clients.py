"""A client that leaves at any stage of a real model's work frees its place, and nothing goes on."""

import httpx
import pytest

from gemma3vl_app.engine.engine import EngineLimits
from tests.api.servers import HAPPENS_WITHIN_SEC, wait_until
from tests.api.test_lost_clients import cut, send
from tests.faults.model_server import STAGES, Barrier, body, said, served_model
from tests.faults.next_answer import NEXT_WITHIN_SEC, next_answer_within

LONG = "word " * 600  # several units of prefill


@pytest.fixture(scope="module")
def model(tiny):
    # One place, and units so short that the engine looks around between all steps.
    with served_model(tiny, engine=EngineLimits(max_running=1, unit_sec=1e-9)) as model:
        yield model


def is_empty(model):
    return not model.server.app.state.api.gate.open_requests


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_who_leaves_at_a_stage_costs_no_further_step(model, stage, stream):
    expected = said(model.ask("Who is next?"))
    barrier = Barrier()
    with model.before(stage, barrier):
        picture = "red" if stage == "vision" else None
        # Nothing of it is known already, or its stage would be skipped.
        text = f"{stage} {stream} {LONG}"
        connection = send(model.server, body(text, picture=picture, tokens=500, stream=stream))
        assert barrier.reached.wait(HAPPENS_WITHIN_SEC)
        cut(connection)
        wait_until(lambda: is_empty(model))
        barrier.go_on.set()
        wait_until(lambda: model.backend.engine.queued == (0, 0))
        assert barrier.passes == 1
    next_answer_within(NEXT_WITHIN_SEC, lambda: model.ask("Is it free?"))
    assert said(model.ask("Who is next?")) == expected


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_while_waiting_is_never_begun(model, stream):
    barrier, started = Barrier(), []
    start = model.backend.engine._prompts.start
    with pytest.MonkeyPatch.context() as patched, model.before("decode", barrier):
        running = send(model.server, body("I run", tokens=500, stream=True))
        assert barrier.reached.wait(HAPPENS_WITHIN_SEC)
        note = lambda sequence: (started.append(sequence), start(sequence))  # noqa: E731
        patched.setattr(model.backend.engine._prompts, "start", note)
        waiting = send(model.server, body("I wait", stream=stream))
        wait_until(lambda: model.backend.engine.queued == (1, 1))
        cut(waiting)
        wait_until(lambda: model.server.app.state.api.gate.open_requests == 1)
        cut(running)
        wait_until(lambda: is_empty(model))
        barrier.go_on.set()
        wait_until(lambda: model.backend.engine.queued == (0, 0))
    assert not started
    next_answer_within(NEXT_WITHIN_SEC, lambda: model.ask("Is it free?"))


def test_who_leaves_between_two_events_frees_the_place_for_the_next(model):
    with (
        httpx.Client(base_url=model.server.address, timeout=HAPPENS_WITHIN_SEC) as client,
        client.stream(
            "POST", "/v1/chat/completions", json=body("Go on", tokens=5000, stream=True)
        ) as response,
    ):
        events = response.iter_lines()
        for _ in range(6):
            next(events)
    next_answer_within(NEXT_WITHIN_SEC, lambda: model.ask("Next"))  # there is one place only
    wait_until(lambda: model.backend.engine.queued == (0, 0) and is_empty(model))
