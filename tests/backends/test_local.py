"""The local backend: options are checked before any work, and the model says what it is."""

import hashlib
import os
import re
import shutil

import pytest

from gemma3vl_app.backends.local import LocalBackend, load
from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import ConversationError, LoadError
from gemma3vl_app.generation import Sample
from gemma3vl_app.loading.sources import open_source
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


def test_it_says_exactly_which_model_it_is(backend, tiny):
    identity = backend.capabilities.identity
    assert identity.name == tiny.name
    assert re.fullmatch(r"files:[0-9a-f]{16}", identity.revision)
    assert (
        identity.tokenizer_sha256
        == hashlib.sha256((tiny / "tokenizer.json").read_bytes()).hexdigest()
    )
    assert identity.weights == "fp32"
    assert re.fullmatch(r"float32 on cpu \(\w+, \d+ threads\)", identity.arithmetic)


def test_a_copied_checkpoint_has_the_same_revision_and_a_trained_one_another(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    file = copy / "model.safetensors"
    os.utime(file, (1, 1))
    report = lambda step: None  # noqa: E731 - one line reads better here
    revision = open_source(tiny, revision=None, report=report).revision
    assert open_source(copy, revision=None, report=report).revision == revision
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # the end is looked at, too
    file.write_bytes(data)
    assert open_source(copy, revision=None, report=report).revision != revision


def test_tokens_that_it_is_given_are_used_and_only_where_they_say_the_text(backend):
    answer = backend.stream(
        HELLO, sampling=Sample(temperature=5.0, seed=2), max_new_tokens=40
    ).answer
    ids = [token.id for token in answer.tokens]
    conversation = HELLO.assistant(answer.text).user("More?")

    def prompt(session: str) -> list[int]:
        return backend._prepare(conversation, session).ids.tolist()

    encoded = prompt("fresh")
    backend.remember(conversation, {1: [*ids[:-1], 300]}, session="wrong")
    assert prompt("wrong") == encoded
    backend.remember(conversation, {1: [106, *ids]}, session="control")
    assert prompt("control") == encoded
    for beyond in (10**9, 2**40, -1):
        backend.remember(conversation, {1: [beyond, *ids]}, session="beyond")
        assert prompt("beyond") == encoded
    backend.remember(conversation, {1: ids}, session="right")
    assert str(ids)[1:-1] in str(prompt("right"))
    assert prompt("right") != encoded
    assert prompt("fresh") == encoded  # another session's are not used
