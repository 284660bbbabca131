"""The scripted backend says why it said something, always the same."""

import numpy as np
import pytest
from PIL import Image

from gemma3vl_app import explain
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.generation import Answer, Token
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.traces import LogitLens, Trace

PICTURE = Picture.open(Image.new("RGB", (80, 40), "red"))
ASKED = Conversation().user(PICTURE, "What?")
CORNER = (0, 0, 40, 20)


@pytest.fixture
def backend():
    return ScriptedBackend()


def test_its_words_are_its_tokens(backend):
    tokens = backend.answer_tokens(ASKED, "A red  circle.")
    assert [(token.id, token.text) for token in tokens] == [(0, "A "), (1, "red  "), (2, "circle.")]
    said = Answer("A red", "stop", tokens=(Token(7, "A "), Token(8, "red")))
    assert [token.id for token in backend.answer_tokens(ASKED, said)] == [7, 8]


@pytest.mark.parametrize("method", [explain.attention, explain.saliency, explain.occlusion])
def test_it_looked_at_the_left_upper_quarter(backend, method):
    heat = method(backend, ASKED, "A red circle.", "red")
    assert heat.contrast(CORNER) > 2
    again = method(backend, ASKED, "A red circle.", "red")
    assert np.array_equal(heat.grid(), again.grid())


def test_all_tokens_are_equally_likely(backend):
    certainty = explain.tokens(backend, ASKED, "A red circle.", alternatives=3)
    assert [token.logprob for token in certainty.tokens] == [-0.5] * 3
    assert [each.text for each in certainty.tokens[1].alternatives] == ["red ", "other1", "other2"]
    assert len(certainty.entropies) == 4


def test_layer_by_layer_it_says_the_same(backend):
    layers = backend.trace(ASKED, "A red circle.", LogitLens(tokens=(1, 2)))
    assert [each.text for each in layers.likeliest[0]] == ["red ", "circle."]


def test_what_was_asked_is_kept_and_progress_told(backend):
    backend.add_adapter("mine", "mine")
    told = []
    options = {"adapter": "mine", "session": "salt", "progress": told.append}
    explain.occlusion(backend, ASKED, "A red circle.", "red", cells=2, **options)
    (request,) = backend.traces
    assert (request.adapter, request.session, request.asked.tokens) == ("mine", "salt", (1,))
    assert [(each.done, each.total) for each in told][-1] == (9, 9)


def test_it_fails_on_cue_and_refuses_when_closed():
    with pytest.raises(EngineError, match="broke"):
        explain.tokens(ScriptedBackend(error=EngineError("It broke.")), ASKED, "A red circle.")
    backend = ScriptedBackend()
    backend.close()
    with pytest.raises(EngineError, match="closed"):
        explain.tokens(backend, ASKED, "A red circle.")


def test_another_question_is_told(backend):
    with pytest.raises(ConversationError, match="knows no"):
        backend.trace(ASKED, "A red circle.", Trace())
