"""What `Backend` promises, held by every backend: scripted, local, and remote over HTTP."""

import threading
from contextlib import ExitStack

import pytest
from PIL import Image

from gemma3vl_app.backends.local import load
from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.backends.remote import load_remote
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.generation import Greedy
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.testing import ScriptedBackend
from tests.backends.remote.fake_server import FakeServer

WORDS = "one two three four five six seven eight nine ten eleven twelve"
RED = Picture.open(Image.new("RGB", (40, 30), "red"), crops="off")
TALK = Conversation(system="Be brief.").user(RED, WORDS)


@pytest.fixture(params=["scripted", "local", "remote"])
def backend(request):
    with ExitStack() as open_now:
        if request.param == "scripted":
            made = ScriptedBackend()
        elif request.param == "local":
            made = load(request.getfixturevalue("tiny"), weights="fp32")
        else:
            server = open_now.enter_context(FakeServer("vllm"))
            made = load_remote(server.url)
        yield open_now.enter_context(made)


def test_it_is_a_backend_that_says_what_it_is(backend):
    assert isinstance(backend, Backend)
    about = backend.capabilities
    assert about.model and about.knows
    assert about.context_tokens > 0 and about.pictures


def test_the_chunks_are_the_answer(backend):
    with backend.stream(TALK, sampling=Greedy(), max_new_tokens=8) as stream:
        chunks = list(stream)
    answer = stream.answer
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert answer.finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer.usage.prompt_tokens > answer.usage.image_tokens > 0
    assert answer.timing.ttft_sec > 0


def test_the_limit_is_kept(backend):
    answer = backend.stream(TALK, sampling=Greedy(), max_new_tokens=1).answer
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 1)


def test_tokens_with_log_probabilities_say_the_text(backend):
    answer = backend.stream(TALK, sampling=Greedy(), max_new_tokens=4, logprobs=1).answer
    assert "".join(token.text for token in answer.tokens) == answer.text
    assert all(token.logprob <= 0 and token.alternatives for token in answer.tokens)


def test_a_stop_string_is_no_part_of_the_answer(backend):
    whole = backend.stream(TALK, sampling=Greedy(), max_new_tokens=8).answer.text
    stop = whole[3:5]
    cut = backend.stream(TALK, sampling=Greedy(), max_new_tokens=8, stop=[stop]).answer
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_a_stopped_answer_ends_and_can_be_stopped_twice(backend):
    stream = backend.stream(TALK, max_new_tokens=500)
    stream.cancel()
    stream.cancel()
    assert stream.answer.finish_reason in ("cancelled", "stop")


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"adapter": "unknown"}], ids=["limit", "adapter"]
)
def test_a_bad_request_raises_at_once_and_harms_nobody(backend, wrong):
    with pytest.raises(ConversationError, match=next(iter(wrong))):
        backend.stream(TALK, **wrong)
    with pytest.raises(ConversationError, match="no message"):
        backend.stream(Conversation())
    assert backend.stream(TALK, sampling=Greedy(), max_new_tokens=2).answer.text


def test_several_threads_ask_at_once(backend):
    texts = []

    def ask():
        texts.append(backend.stream(TALK, sampling=Greedy(), max_new_tokens=3).answer.text)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 5 and len(set(texts)) == 1


def test_a_preview_computes_nothing_and_counts_pictures(backend):
    preview = backend.preview(TALK)
    assert preview.prompt_tokens > preview.image_tokens > 0
    assert preview.context_tokens == backend.capabilities.context_tokens
    assert len(preview.crops) == 1


def test_a_closed_backend_names_the_model_and_what_to_do(backend):
    backend.close()
    backend.close()
    with pytest.raises(EngineError, match=r"(?i)close"):
        backend.stream(TALK)
