"""The local backend: options are checked before any work, and the model says what it is."""

import pytest

from gemma3vl_app.backends.local import LocalBackend, load
from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import ConversationError, LoadError
from gemma3vl_app.generation import Sample
from gemma3vl_app.messages import Conversation
from gemma3vl_app.testing import ScriptedBackend
from tests.engine.reference import picture

HELLO = Conversation().user("Hello")


@pytest.fixture(scope="module")
def backend(tiny):
    with load(tiny, weights="fp32") as shared:
        yield shared


def test_local_and_scripted_backends_keep_the_same_protocol(backend):
    assert isinstance(backend, Backend)
    assert isinstance(ScriptedBackend(), Backend)


def test_capabilities_come_from_the_checkpoint(backend):
    about = backend.capabilities
    assert (about.context_tokens, about.image_tokens) == (8192, 16)
    assert about.pictures
    assert about.sampling == Sample(top_k=64, top_p=0.95)
    assert backend.plan.reasons


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"logprobs": 21}, "between 0 and 20"),
        ({"logprobs": -1}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "17 stop strings"),
        ({"stop": [3]}, "stop"),
        ({"adapter": "unknown"}, "unknown"),
        ({"schema": int}, "schema"),
    ],
)
def test_a_bad_option_is_refused_by_name(backend, options, word):
    with pytest.raises(ConversationError, match=word):
        backend.stream(HELLO, **options)


def test_a_conversation_without_messages_is_refused(backend):
    with pytest.raises(ConversationError):
        backend.stream(Conversation())
    with pytest.raises(ConversationError):
        backend.preview(Conversation())
    with pytest.raises(ConversationError, match="score"):
        backend.score(HELLO, "")


def test_preview_shows_the_crops_and_what_they_cost(backend):
    whole = backend.preview(Conversation().user(picture(1, 1200, 400, crops="off"), "?"))
    cropped = backend.preview(Conversation().user(picture(1, 1200, 400, crops="on"), "?"))
    assert whole.crops == ((),)
    assert cropped.crops == (((0, 0, 400, 400), (400, 0, 800, 400), (800, 0, 1200, 400)),)
    assert (whole.image_tokens, cropped.image_tokens) == (16, 4 * 16)
    assert cropped.prompt_tokens > whole.prompt_tokens + 3 * 16


def test_an_unknown_model_is_refused_with_what_there_is():
    with pytest.raises(LoadError, match="demo"):
        load("no-such-model")


def test_closing_twice_is_fine(tiny):
    backend: LocalBackend = load(tiny)
    backend.close()
    backend.close()
