"""A model on a lent GPU: here a forked process, in which it is moved to the CPU that it is on."""

import multiprocessing
import time

import pytest
from PIL import Image

from gemma3vl_app.backends.borrowed import LENT, BorrowedBackend
from gemma3vl_app.backends.local import load
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.generation import Greedy
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.testing import tiny_checkpoint
from tests import forked

PICTURE = Picture.open(Image.new("RGB", (40, 30), "red"), crops="off")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    with load(tiny_checkpoint(tmp_path_factory.mktemp("tiny")), weights="fp32") as backend:
        yield backend


@pytest.fixture
def borrowed(local):
    return BorrowedBackend(local, forked.GPU(duration=lambda *_: 60), device="cpu")


def asked(text="What?"):
    return Conversation().user(PICTURE, text)


def test_answers_are_those_of_the_model_itself(local, borrowed):
    options = {"sampling": Greedy(), "max_new_tokens": 8, "logprobs": 1}
    expected = local.stream(asked(), **options).answer
    stream = borrowed.stream(asked(), **options)
    text = "".join(chunk.text for chunk in stream)
    assert text == stream.answer.text == expected.text
    assert [token.id for token in stream.answer.tokens] == [token.id for token in expected.tokens]
    assert stream.answer.usage.prompt_tokens == expected.usage.prompt_tokens


def test_what_it_costs_is_counted_without_borrowing(local):
    def never(compute):
        return lambda *args: pytest.fail("a GPU was borrowed")

    backend = BorrowedBackend(local, never)
    assert backend.preview(asked()).prompt_tokens == local.preview(asked()).prompt_tokens
    with pytest.raises(ConversationError):
        backend.stream(Conversation())


def test_stopped_the_gpu_is_given_back_and_what_was_said_is_kept(borrowed):
    stream = borrowed.stream(asked(), sampling=Greedy(), max_new_tokens=5000)
    said = next(chunk for chunk in stream if chunk.tokens)
    stream.cancel()
    answer = stream.answer
    assert answer.finish_reason == "cancelled"
    assert answer.text.startswith(said.text)
    assert answer.usage.completion_tokens == len(answer.tokens) < 5000
    until = time.monotonic() + 10
    while multiprocessing.active_children():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_refusal_of_the_model_comes_back_as_it_is(borrowed):
    with pytest.raises(ConversationError, match="max_new_tokens"):
        _ = borrowed.stream(asked(), max_new_tokens=0).answer


def test_without_a_gpu_it_says_why(local):
    def lend_none(compute):
        def run(*args):
            raise RuntimeError("You have used up your time.")
            yield

        return run

    with pytest.raises(EngineError, match="used up your time"):
        _ = BorrowedBackend(local, lend_none).stream(asked()).answer


def test_a_gpu_that_is_taken_away_is_told(local):
    backend = BorrowedBackend(local, lambda compute: lambda *args: iter(()))
    with pytest.raises(EngineError, match="taken away"):
        _ = backend.stream(asked()).answer


def test_it_says_that_its_gpu_is_lent_and_takes_no_adapters(borrowed):
    assert LENT in borrowed.capabilities.knows
    with pytest.raises(EngineError, match="merge"):
        borrowed.add_adapter("mine", "folder")
    with pytest.raises(EngineError):
        borrowed.score(asked(), "text")
