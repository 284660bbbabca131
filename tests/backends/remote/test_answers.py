"""Answers: what is asked, what comes in, what it cost, and every way in which a server fails."""

import gc
import json
import threading

import pytest
from PIL import Image

from gemma3vl_app.backends.remote import RemoteLimits
from gemma3vl_app.errors import (
    BusyError,
    ContextLengthError,
    ConversationError,
    EngineError,
)
from gemma3vl_app.generation import Alternative, Greedy, Sample
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from tests.backends.remote.conftest import QUICK
from tests.backends.remote.fake_server import DONE, PICTURE_TOKENS, delta, ended, event, fails

HELLO = Conversation().user("Hello to you")
RED = Picture.open(Image.new("RGB", (8, 6), "red"), crops="off")


def said_by(server, backend, *pieces: bytes, **options):
    """The answer that these bytes are."""
    server.script.append(lambda _: server.raw(list(pieces)))
    return backend.stream(HELLO, **options).answer


# --- what is asked ---


def test_options_are_passed_on_as_the_server_calls_them(serve, connect):
    server = serve("vllm")
    backend = connect(server)
    rule = Sample(temperature=0.7, top_k=5, top_p=0.9, seed=7)
    stream = backend.stream(HELLO, sampling=rule, max_new_tokens=9, stop=["x"], session="me")
    assert stream.answer.text == "Hello to you"
    body = server.bodies[0]
    assert (body["temperature"], body["top_k"], body["top_p"], body["seed"]) == (0.7, 5, 0.9, 7)
    assert (body["max_tokens"], body["stop"], body["stream"]) == (9, ["x"], True)
    assert body["stream_options"]["include_usage"]
    assert len(body["cache_salt"]) == 64  # never the name of who asks


def test_greedy_is_temperature_zero(serve, connect):
    server = serve("sglang")
    connect(server).stream(HELLO, sampling=Greedy()).wait()
    assert server.bodies[0]["temperature"] == 0.0
    assert not {"top_k", "top_p", "seed", "cache_salt"} & set(server.bodies[0])


def test_llama_cpp_gets_its_own_filter_switched_off(serve, connect):
    server = serve("llama.cpp")
    connect(server).stream(HELLO).wait()
    assert server.bodies[0]["min_p"] == 0.0


def test_top_k_that_is_off_is_off(serve, connect):
    server, other = serve("vllm"), serve("llama.cpp")
    for each in (server, other):
        connect(each).stream(HELLO, sampling=Sample(top_k=0)).wait()
    assert (server.bodies[0]["top_k"], other.bodies[0]["top_k"]) == (-1, 0)


def test_a_limit_beyond_the_context_is_made_to_fit(serve, connect):
    server = serve("vllm")
    connect(server).stream(HELLO, max_new_tokens=10**6).wait()
    assert 4000 < server.bodies[0]["max_tokens"] < 4096


def test_an_unfinished_answer_is_gone_on_with_by_flags(serve, connect):
    server = serve("vllm")
    connect(server).stream(HELLO.assistant("I am")).wait()
    body = server.bodies[0]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["messages"][-1] == {"role": "assistant", "content": "I am"}


@pytest.mark.parametrize(
    ("kind", "conversation", "options", "word"),
    [
        ("ollama", HELLO, {"sampling": Sample()}, "top_k cannot be asked of Ollama"),
        ("ollama", HELLO.assistant("I"), {}, "unfinished answer.*vLLM"),
        ("vllm", HELLO.assistant("I"), {"schema": {}}, "schema"),
        ("transformers", HELLO, {"logprobs": 1}, "logprobs"),
        ("transformers", HELLO, {"schema": {}}, "schema"),
        ("vllm", HELLO, {"adapter": "x"}, "adapter 'x'"),
        ("vllm", HELLO, {"logprobs": 21}, "between 0 and 20"),
        ("vllm", HELLO, {"max_new_tokens": 0}, "max_new_tokens"),
        ("vllm", HELLO, {"stop": [""]}, "stop"),
        ("vllm", Conversation().user(RED.with_crops("on")), {}, "crops='on'.*vLLM"),
        ("text only", Conversation().user(RED), {}, "reads text only"),
        ("vllm", Conversation(), {}, "no message"),
        ("vllm", Conversation().user("\ud800"), {}, "half a character"),
    ],
)
def test_what_the_server_cannot_keep_is_refused_by_name(
    serve, connect, kind, conversation, options, word
):
    server = serve(kind)
    backend = connect(server)
    with pytest.raises(ConversationError, match=word):
        backend.stream(conversation, **options)
    assert not server.bodies


def test_more_pictures_than_the_context_holds_are_refused(serve, connect):
    backend = connect(serve(), context_tokens=3 * PICTURE_TOKENS)
    with pytest.raises(ContextLengthError, match="120"):
        backend.stream(Conversation().user(RED, RED, RED))


def test_the_preview_is_said_to_be_an_estimate(serve, connect):
    preview = connect(serve("vllm")).preview(Conversation().user(RED, "How many are there?"))
    assert not preview.exact
    assert preview.image_tokens == PICTURE_TOKENS
    assert PICTURE_TOKENS < preview.prompt_tokens < PICTURE_TOKENS + 20
    assert (preview.crops, preview.context_tokens) == (((),), 4096)


# --- what comes in ---


def test_an_answer_has_its_text_cost_and_times(serve, connect):
    server = serve("vllm")
    stream = connect(server).stream(Conversation().user(RED, "one two three"))
    assert [c.text for c in stream if c.text] == ["one ", "two ", "three"]
    answer = stream.answer
    assert (answer.text, answer.finish_reason) == ("one two three", "stop")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (PICTURE_TOKENS + 3, 3)
    assert (usage.image_tokens, usage.cached_tokens) == (PICTURE_TOKENS, 21)
    assert answer.timing.ttft_sec > 0


def test_the_limit_is_an_end_of_its_own(serve, connect):
    answer = connect(serve("vllm")).stream(HELLO, max_new_tokens=2).answer
    assert (answer.text, answer.finish_reason) == ("Hello to ", "length")


def test_log_probabilities_come_with_their_alternatives(serve, connect):
    answer = connect(serve("vllm")).stream(HELLO, logprobs=2).answer
    assert [token.text for token in answer.tokens] == ["Hello ", "to ", "you"]
    assert answer.tokens[0].logprob == -0.5
    assert answer.tokens[0].alternatives[1] == Alternative(0, "other", -1.5)
    assert connect(serve("vllm")).stream(HELLO, logprobs=0).answer.tokens[0].alternatives == ()


def test_tokens_of_half_a_character_add_up_to_the_text(serve, connect):
    server = serve("vllm")
    backend = connect(server)
    whole = "é".encode()
    entries = [{"token": "\ufffd", "logprob": -1.0, "bytes": [byte]} for byte in whole]
    piece = {"delta": {"content": "é"}, "logprobs": {"content": entries}}
    answer = said_by(server, backend, event({"choices": [piece]}), ended(), DONE, logprobs=0)
    assert [token.text for token in answer.tokens] == ["", "é"]


def test_tokens_in_another_form_than_the_text_still_add_up_to_it(serve, connect):
    server = serve("vllm")
    backend = connect(server)
    entries = [{"token": "▁a", "logprob": -1.0}, {"token": "▁b", "logprob": float("-9e9")}]
    piece = {"delta": {"content": " a b"}, "logprobs": {"content": entries}}
    answer = said_by(server, backend, event({"choices": [piece]}), ended(), DONE, logprobs=0)
    assert "".join(token.text for token in answer.tokens) == answer.text == " a b"


def test_characters_may_be_cut_between_pieces_of_the_stream(serve, connect):
    server = serve()
    backend = connect(server)
    data = delta("日本🙂") + ended() + DONE
    answer = said_by(server, backend, *(data[n : n + 1] for n in range(len(data))))
    assert answer.text == "日本🙂"


def test_comments_roles_reasoning_and_empty_choices_are_no_text(serve, connect):
    server = serve()
    backend = connect(server)
    answer = said_by(
        *(server, backend, b": keep-alive\n\n", event({"choices": []})),
        delta("", role="assistant"),
        delta(None, reasoning="Let me see."),
        delta(None, reasoning_content="Well."),
        delta("Yes."),
        ended(),
        event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}),
        DONE,
    )
    assert answer.text == "Yes."
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"prompt_tokens": -3, "completion_tokens": None},
        {"prompt_tokens": "many", "completion_tokens": True},
        {"prompt_tokens_details": {"cached_tokens": 10**9}},
        {"prompt_tokens_details": None},
    ],
)
def test_a_cost_that_makes_no_sense_is_estimated(serve, connect, usage):
    server = serve("vllm")
    backend = connect(server)
    parts = [delta("a"), delta("b"), ended(), event({"choices": [], "usage": usage}), DONE]
    found = said_by(server, backend, *parts).usage
    expected = backend.preview(HELLO).prompt_tokens
    assert (found.prompt_tokens, found.completion_tokens) == (expected, 2)
    assert found.cached_tokens <= found.prompt_tokens


def test_a_server_that_does_not_stream_is_read_all_the_same(serve, connect):
    server = serve()
    backend = connect(server)
    whole = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "length"}]}
    server.script.append(
        lambda _: server.raw([json.dumps(whole).encode()], content_type="application/json")
    )
    answer = backend.stream(HELLO).answer
    assert (answer.text, answer.finish_reason) == ("Yes.", "length")


def test_a_stop_string_that_a_server_leaves_in_is_cut_off(serve, connect):
    server = serve("transformers")
    backend = connect(server)
    usage = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}})
    parts = [delta("one E"), delta("N"), delta("D"), ended(), usage, DONE]
    answer = said_by(server, backend, *parts, stop=["END"])
    assert (answer.text, answer.finish_reason) == ("one ", "stop")
    assert answer.usage.completion_tokens == 4


def test_what_only_begins_like_a_stop_string_is_text(serve, connect):
    server = serve()
    backend = connect(server)
    assert said_by(
        server, backend, delta("one E"), delta("N"), ended(), DONE, stop=["END"]
    ).text == ("one EN")


def test_a_server_that_goes_on_beyond_a_stop_string_is_left(serve, connect):
    server = serve()
    backend = connect(server)
    never = threading.Event()
    pieces = [delta("a END b"), delta("c")]
    server.script.append(lambda _: server.raw(pieces, until=never))
    answer = backend.stream(HELLO, stop=["END"]).answer
    assert (answer.text, answer.finish_reason) == ("a ", "stop")
    assert server.left.wait(30)


# --- stopping ---


def test_cancelling_closes_the_connection_and_keeps_what_was_said(serve, connect):
    server = serve("vllm")
    backend = connect(server)
    never = threading.Event()
    server.script.append(lambda _: server.raw([delta("one "), delta("two")], until=never))
    stream = backend.stream(HELLO)
    while next(stream).text != "two":
        pass
    threading.Thread(target=stream.cancel).start()
    answer = stream.answer
    assert (answer.text, answer.finish_reason) == ("one two", "cancelled")
    assert answer.usage.completion_tokens == 2
    assert server.left.wait(30)


def test_cancelling_before_the_first_word_ends_the_request(serve, connect):
    server = serve()
    backend = connect(server)
    never = threading.Event()
    server.script.append(lambda _: server.raw([b": wait\n\n"], until=never))
    stream = backend.stream(HELLO)
    server.wait_for_requests(1)
    stream.cancel()
    stream.cancel()
    assert (stream.answer.text, stream.answer.finish_reason) == ("", "cancelled")
    assert server.left.wait(30)


def test_cancelling_at_once_is_an_end_too(serve, connect):
    backend = connect(serve())
    for _ in range(20):
        stream = backend.stream(HELLO)
        stream.cancel()
        assert stream.answer.finish_reason in ("cancelled", "stop")


def test_closing_lets_answers_end_for_a_while_then_says_why_they_do_not(serve, connect):
    server = serve()
    backend = connect(server)
    go_on, never = threading.Event(), threading.Event()
    server.script.append(lambda _: server.raw([delta("a")], until=go_on, then=(ended(), DONE)))
    server.script.append(lambda _: server.raw([delta("b")], until=never))
    first = backend.stream(HELLO)
    server.wait_for_requests(1)
    second = backend.stream(HELLO)
    server.wait_for_requests(2)
    closing = threading.Thread(target=backend.close, kwargs={"finish_sec": 0.2})
    closing.start()
    go_on.set()
    assert first.answer.text == "a"
    closing.join()
    with pytest.raises(EngineError, match="'tiny' has been closed"):
        _ = second.answer
    with pytest.raises(EngineError, match="'tiny' has been closed"):
        backend.stream(HELLO)
    backend.close()
    assert server.left.wait(30)


def test_nothing_is_left_of_two_hundred_requests(serve, connect):
    server = serve("vllm")
    backend = connect(server)
    threads = threading.active_count()
    for number in range(200):
        stream = backend.stream(HELLO)
        if number % 3 == 0:
            stream.cancel()
        if number % 5 == 0:
            server.script.append(fails(400, {"error": "no"}))
        try:
            stream.wait()
        finally:
            server.script.clear()
    assert threading.active_count() == threads
    assert not backend._running and not backend._pool.running
    assert server.connections <= 20
    backend.close()
    gc.collect()
    assert threading.active_count() == threads - 1


# --- failing ---


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_server_that_is_not_ready_is_asked_again(serve, connect, status):
    server = serve()
    backend = connect(server)
    server.script += [fails(status), fails(status)]
    assert backend.stream(HELLO).answer.text == "Hello to you"
    assert len(server.bodies) == 3


def test_a_server_that_stays_away_is_given_up_after_so_many_tries(serve, connect):
    server = serve()
    backend = connect(server)
    server.broken = True
    with pytest.raises(EngineError, match=f"{server.host} is not ready"):
        _ = backend.stream(HELLO).answer
    assert len(server.bodies) == QUICK.tries


def test_a_busy_server_is_waited_for_as_long_as_it_asks(serve, connect):
    server = serve()
    backend = connect(server)
    server.script.append(fails(429, {"error": {"message": "slow"}}, retry_after="0.05"))
    assert backend.stream(HELLO).answer.text == "Hello to you"


def test_a_server_that_asks_for_too_long_a_wait_is_busy(serve, connect):
    server = serve()
    backend = connect(server)
    server.script.append(fails(429, None, retry_after="3600"))
    with pytest.raises(BusyError, match="wait 3600 s"):
        _ = backend.stream(HELLO).answer
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("status", "body", "kind", "word"),
    [
        (400, {"error": {"message": "bad \x1b[31mthing"}}, ConversationError, "refuses this"),
        (422, {"detail": [{"msg": "Field required"}]}, ConversationError, "Field required"),
        (413, None, ConversationError, "smaller pictures"),
        (401, None, EngineError, "GEMMA3VL_REMOTE_KEY"),
        (404, {"object": "error", "message": "no model"}, EngineError, "no model"),
        (500, {"error": "Traceback: /srv/x.py"}, EngineError, r"HTTP 500"),
        (
            400,
            {"message": "This model's maximum context length is 4096 tokens."},
            ContextLengthError,
            "4096",
        ),
        (
            400,
            {"error": {"message": "request (9 tokens) exceeds the available context size (8)"}},
            ContextLengthError,
            "available context size",
        ),
    ],
)
def test_a_refusal_is_told_once_and_never_asked_again(serve, connect, status, body, kind, word):
    server = serve()
    backend = connect(server)
    server.script.append(fails(status, body))
    with pytest.raises(kind, match=word) as error:
        _ = backend.stream(HELLO).answer
    assert server.host in str(error.value)
    assert "\x1b" not in str(error.value) and "/srv" not in str(error.value)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("pieces", "word"),
    [
        ([event({"error": {"message": "out of memory"}})], "while it was answering: out of memory"),
        ([event({"error": "gone"})], "gone"),
        ([b'data: {"error": "with "quotes""}\n\n'], "failed while it was answering"),
        ([b"data: <html>\n\n"], "not OpenAI's protocol"),
        ([b"data: [1]\n\n"], "not OpenAI's protocol"),
        ([b"<html>no events</html>"], "broke the answer off"),
        ([], "broke the answer off after 2 characters"),
        ([ended("abort")], "broke the answer off"),
    ],
)
def test_what_goes_wrong_in_an_answer_fails_it_after_what_was_said(serve, connect, pieces, word):
    server = serve()
    backend = connect(server)
    server.script.append(lambda _: server.raw([delta("so"), *pieces]))
    stream = backend.stream(HELLO)
    said = []
    with pytest.raises(EngineError, match=word):
        said += [chunk.text for chunk in stream]
    assert len(server.bodies) == 1  # something had come back: it is not asked again
    assert backend.stream(HELLO).answer.text == "Hello to you"


def test_a_connection_that_breaks_is_told_and_not_asked_again(serve, connect):
    server = serve()
    backend = connect(server)
    server.script.append(lambda _: server.raw([delta("so")], breaks=True))
    stream = backend.stream(HELLO)
    with pytest.raises(EngineError, match="broke in the middle"):
        list(stream)
    assert len(server.bodies) == 1


def test_a_server_that_falls_silent_is_left(serve, connect):
    server = serve()
    backend = connect(server, limits=RemoteLimits(silence_sec=0.2))
    never = threading.Event()
    server.script.append(lambda _: server.raw([delta("so")], until=never))
    with pytest.raises(EngineError, match="silent for 0 s"):
        list(backend.stream(HELLO))
    assert server.left.wait(30)


def test_an_answer_has_a_time_in_all(serve, connect):
    server = serve()
    backend = connect(server, limits=RemoteLimits(total_sec=0.2))
    never = threading.Event()
    server.script.append(lambda _: server.raw([delta("so")], until=never))
    with pytest.raises(EngineError, match="not complete after"):
        list(backend.stream(HELLO))
    assert server.left.wait(30)


def test_too_many_answers_at_once_are_refused(serve, connect):
    server = serve()
    backend = connect(server, limits=RemoteLimits(at_once=1))
    never = threading.Event()
    server.script.append(lambda _: server.raw([delta("so")], until=never))
    with backend.stream(HELLO), pytest.raises(BusyError, match="1 answers are being written"):
        backend.stream(HELLO)
