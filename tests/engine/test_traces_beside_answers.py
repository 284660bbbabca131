"""Traces beside other work: answers go on, nothing is left behind; and what cannot be asked."""

import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from gemma3vl_app.engine.traces import tape
from gemma3vl_app.errors import (
    ContextLengthError,
    ConversationError,
    EngineError,
    MemoryLimitError,
)
from gemma3vl_app.generation import Greedy
from gemma3vl_app.messages import Conversation
from gemma3vl_app.traces import Attention, Distributions, LogitLens, Occlusion, Saliency
from tests.engine.reference import greedy, picture
from tests.engine.test_traces import ONE

# --- beside other work ---


def test_answers_go_on_while_a_trace_runs_and_stay_right(backend, reference):
    talk = Conversation().user("Tell me more.", picture(5))
    answer = greedy(backend, ONE)
    stream = backend.stream(
        talk, session="beside", sampling=Greedy(), max_new_tokens=60, logprobs=5
    )
    next(chunk for chunk in stream if chunk.tokens)
    backend.trace(ONE, answer, Saliency(tokens=(0,), through_tower=True))
    reference.check(talk, stream.answer, session="beside")


def test_a_trace_reads_the_prompt_from_the_cache_and_leaves_the_cache_right(backend, reference):
    answer = greedy(backend, ONE)
    calls = []
    forward = backend.engine._text_model.forward

    def counted(vectors, batch):
        calls.append(batch.count)
        return forward(vectors, batch)

    backend.engine._text_model.forward = counted
    try:
        backend.trace(ONE, answer, Attention(tokens=(0, 1)))
    finally:
        del backend.engine._text_model.forward
    assert sum(calls) <= 4  # one token of the prompt again, and those of the answer that matter
    follow_up = ONE.assistant(answer.text).user("Go on.")
    reference.check(follow_up, greedy(backend, follow_up))


def test_a_trace_tells_how_far_it_is_and_can_be_interrupted(make_backend):
    backend = make_backend(unit_sec=1e-6)
    answer = greedy(backend, ONE)
    regions = tuple((x, 0, x + 5, 50) for x in range(0, 65, 5))
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if progress.stage == "tracing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.trace(
            ONE, answer, Occlusion(tokens=(0,), picture=0, regions=regions), progress=interrupt
        )
    assert seen[-1].total > 0
    assert not backend.engine.call(lambda: backend.engine._prefilling)
    assert greedy(backend, ONE).text == answer.text


@pytest.mark.parametrize(
    "asked",
    [
        Attention(tokens=(0,), rollout=True),
        Saliency(tokens=(0,), through_tower=True),
        Occlusion(tokens=(0,), picture=0, regions=((0, 0, 9, 9),) * 20),
    ],
)
def test_progress_only_rises_and_ends_at_its_total(make_backend, asked):
    backend = make_backend(unit_sec=1e-6)
    seen = []
    backend.trace(ONE, greedy(backend, ONE), asked, progress=seen.append)
    steps = [(each.done, each.total) for each in seen if each.stage == "tracing"]
    assert len({total for _, total in steps}) == 1
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1]


def test_traces_leave_the_prefixes_of_others_in_the_cache(backend):
    answer = greedy(backend, ONE, session="full")
    backend.trace(ONE, answer, Distributions(), session="full")
    before = len(backend.engine.prefixes._snapshots), backend.engine.prefixes.bytes
    first = (0,)
    looks = (Attention(tokens=first), Saliency(tokens=first), LogitLens(tokens=first))
    for asked in 3 * (Distributions(), *looks):
        backend.trace(ONE, answer, asked, session="full")
    assert (len(backend.engine.prefixes._snapshots), backend.engine.prefixes.bytes) == before


def test_a_second_trace_waits_for_the_first_and_answers_pass_them(make_backend):
    backend = make_backend(unit_sec=1e-6, max_running=2)
    answer = greedy(backend, ONE)
    slow = Occlusion(tokens=(0,), picture=0, regions=((0, 0, 9, 9),) * 300)

    def ask() -> None:
        with suppress(EngineError):  # the backend is closed before they end
            backend.trace(ONE, answer, slow)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(backend.engine._waiting) < 2:
        time.sleep(0.001)
    assert greedy(backend, ONE, session="passes").text == answer.text
    assert sum(thread.is_alive() for thread in threads) == 3
    backend.close()
    for thread in threads:
        thread.join(10)


def test_sessions_do_not_share_what_a_trace_computed(backend):
    answer = greedy(backend, ONE, session="mine")
    backend.trace(ONE, answer, Attention(tokens=(0,)), session="mine")
    assert backend.preview(ONE, session="mine").cached_tokens > 0
    assert backend.preview(ONE, session="theirs").cached_tokens == 0


def test_two_traces_at_once_both_come_out_right(backend):
    answer = greedy(backend, ONE)
    alone = backend.trace(ONE, answer, Saliency(tokens=(1,)))
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append(backend.trace(ONE, answer, Saliency(tokens=(1,))))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(np.allclose(each.soft_tokens, alone.soft_tokens, atol=1e-6) for each in results)


# --- what cannot be asked ---


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Attention(tokens=()), "No token"),
        (Attention(tokens=(99,)), "has 12"),
        (Attention(tokens=(0,), layers=(6,)), "no layer 6: this model has 6"),
        (Attention(tokens=(0,), heads=(-1,)), "no head -1"),
        (Occlusion(tokens=(0,), picture=1, regions=()), "no picture 1"),
        (Distributions(top=0), "between 1 and 100"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_with_a_reason(backend, asked, message):
    answer = greedy(backend, ONE)
    with pytest.raises(ConversationError, match=message):
        backend.trace(ONE, answer, asked)


@pytest.mark.parametrize(
    "asked", [Saliency(tokens=(0,)), Occlusion(tokens=(0,), picture=0, regions=())]
)
def test_without_a_picture_there_is_nothing_to_look_at(backend, asked):
    talk = Conversation().user("Hello")
    with pytest.raises(ConversationError, match="no picture"):
        backend.trace(talk, greedy(backend, talk), asked)


def test_a_trace_that_would_take_too_much_memory_is_refused_before_it_starts(backend, monkeypatch):
    answer = greedy(backend, ONE)
    monkeypatch.setattr(tape, "MAX_BYTES", 1000)
    with pytest.raises(MemoryLimitError, match="Use fewer pictures"):
        backend.trace(ONE, answer, Saliency(tokens=(0,)))
    assert greedy(backend, ONE).text == answer.text


def test_an_answer_with_foreign_tokens_is_encoded_from_its_text(backend):
    answer = greedy(backend, ONE)
    forged = replace(answer, tokens=tuple(replace(token, id=106) for token in answer.tokens))
    traced = backend.trace(ONE, forged, Attention(tokens=(0,)))
    assert 106 not in [token.id for token in traced.tokens]
    assert "".join(token.text for token in traced.tokens) == answer.text


def test_an_answer_beyond_the_context_is_refused(make_backend):
    backend = make_backend(context_tokens=40)
    with pytest.raises(ContextLengthError, match="the model's context"):
        backend.trace(Conversation().user("Hello"), "word " * 50, Distributions())
