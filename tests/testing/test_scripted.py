"""The scripted backend behaves as the protocol promises."""

import asyncio
import time

import pytest

from gemma3vl_app.backends.protocol import Backend, Capabilities, Explains
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.generation import Greedy, Status
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.testing.scripted import ScriptedBackend

HELLO = Conversation().user("Hello dear reader.")


def test_it_is_a_backend():
    assert isinstance(ScriptedBackend(), Backend)
    assert isinstance(ScriptedBackend(), Explains)


def test_by_default_it_echoes_the_last_user_message():
    stream = ScriptedBackend().stream(HELLO)
    assert "".join(chunk.text for chunk in stream) == "Hello dear reader."
    assert stream.answer.text == "Hello dear reader."
    assert stream.answer.finish_reason == "stop"
    assert stream.answer.usage.completion_tokens == 3


def test_given_chunks_are_said_one_token_each():
    answer = ScriptedBackend(["A red ", "circle."]).stream(HELLO).answer
    assert [token.text for token in answer.tokens] == ["A red ", "circle."]


def test_requests_are_kept_with_every_option():
    backend = ScriptedBackend()
    _ = backend.stream(HELLO, sampling=Greedy(), max_new_tokens=7, stop=["x"], session="s").answer
    (request,) = backend.requests
    assert request.conversation == HELLO
    assert (request.sampling, request.max_new_tokens) == (Greedy(), 7)
    assert (request.stop, request.session) == (("x",), "s")


def test_statuses_come_in_order(picture):
    stream = ScriptedBackend().stream(Conversation().user(picture, picture, "Which?"))
    statuses = [chunk.status for chunk in stream]
    assert statuses[:3] == [Status("queued"), Status("vision", 1, 2), Status("vision", 2, 2)]
    assert [status.stage for status in statuses[3:]] == ["prefill", "decoding"]


def test_max_new_tokens_ends_the_answer_by_length():
    answer = ScriptedBackend().stream(HELLO, max_new_tokens=2).answer
    assert (answer.text, answer.finish_reason) == ("Hello dear ", "length")


def test_a_stop_text_ends_the_answer_before_it():
    answer = ScriptedBackend(["one, t", "wo, three"]).stream(HELLO, stop=["two"]).answer
    assert (answer.text, answer.finish_reason) == ("one, ", "stop")


def test_cancel_ends_a_slow_answer_at_once_and_keeps_its_text():
    backend = ScriptedBackend(["A ", "B ", "C "], seconds_per_chunk=0.2)
    stream = backend.stream(HELLO)
    text = next(chunk.text for chunk in stream if chunk.text)
    started = time.perf_counter()
    stream.cancel()
    assert stream.answer.finish_reason == "cancelled"
    assert stream.answer.text == text == "A "
    assert time.perf_counter() - started < 0.15
    assert backend.running == 0


def test_an_error_comes_after_the_chunks():
    stream = ScriptedBackend(["A "], error=EngineError("It broke.")).stream(HELLO)
    heard = []
    with pytest.raises(EngineError, match="It broke"):
        for chunk in stream:
            heard.append(chunk.text)
    assert "".join(heard) == "A "


def test_a_follow_up_finds_the_earlier_turn_cached(picture):
    backend = ScriptedBackend()
    first = Conversation().user(picture, "One two")
    answer = backend.stream(first).answer
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens) == (66, 0)
    follow_up = first.assistant(answer.text).user("three")
    assert backend.stream(follow_up).answer.usage.cached_tokens == 66
    assert backend.preview(follow_up, session="another").cached_tokens == 0


def test_asked_for_log_probabilities_come_with_alternatives():
    (token,) = ScriptedBackend(["A"]).stream(HELLO, logprobs=2).answer.tokens
    assert token.logprob is not None
    assert len(token.alternatives) == 2


def test_async_iteration_works():
    async def read() -> str:
        return "".join([chunk.text async for chunk in ScriptedBackend().stream(HELLO)])

    assert asyncio.run(read()) == "Hello dear reader."


def test_bad_requests_are_refused(picture):
    backend = ScriptedBackend()
    with pytest.raises(ConversationError, match="no message"):
        backend.stream(Conversation())
    with pytest.raises(ConversationError, match="max_new_tokens"):
        backend.stream(HELLO, max_new_tokens=0)
    with pytest.raises(ConversationError, match="adapter"):
        backend.stream(HELLO, adapter="unknown")
    blind = ScriptedBackend(
        capabilities=Capabilities(model="blind", knows="", context_tokens=64, image_tokens=0)
    )
    with pytest.raises(ConversationError, match="no pictures"):
        blind.stream(Conversation().user(picture))


def test_closing_tells_who_waits_and_refuses_more():
    backend = ScriptedBackend(["A "] * 100, seconds_per_chunk=0.1)
    with backend:
        stream = backend.stream(HELLO)
    with pytest.raises(EngineError, match=r"'scripted' has been closed\. Load it again"):
        _ = stream.answer
    with pytest.raises(EngineError, match="closed"):
        backend.stream(HELLO)


def test_closing_with_time_lets_answers_finish():
    backend = ScriptedBackend(["a ", "b ", "c"], seconds_per_chunk=0.02)
    stream = backend.stream(HELLO)
    backend.close(finish_sec=10)
    assert stream.answer.text == "a b c"
    with pytest.raises(EngineError, match="closed"):
        backend.stream(HELLO)


@pytest.fixture
def picture() -> Picture:
    from PIL import Image

    return Picture.open(Image.new("RGB", (8, 8), "red"), name="red.png")
