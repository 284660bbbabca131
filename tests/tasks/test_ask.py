"""Captions, answers and comparisons: what is asked, and what comes back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gemma3vl_app as gv
from gemma3vl_app.errors import ConversationError, EngineError, PictureError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.messages import Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.tasks import prompts
from gemma3vl_app.testing.scripted import ScriptedBackend

RED, BLUE, GREEN = (Image.new("RGB", (9, 9), colour) for colour in ("red", "blue", "green"))


def test_a_caption_is_the_models_text_and_keeps_its_answer():
    backend = ScriptedBackend([" A red ", "square.\n"])
    caption = gv.caption(backend, RED)
    assert isinstance(caption, gv.Caption)
    assert (str(caption), caption.text, caption.complete) == ("A red square.",) * 2 + (True,)
    assert caption.answer.text == " A red square.\n"
    (request,) = backend.requests
    assert request.conversation.messages[0].text == prompts.CAPTION["short"].text
    assert request.conversation.pictures[0].crops == "auto"
    assert request.sampling == Greedy()


def test_a_caption_can_be_detailed_and_cut():
    backend = ScriptedBackend(["One ", "two ", "three"])
    caption = gv.caption(backend, RED, detail="detailed", crops="off", max_new_tokens=2)
    assert (caption.text, caption.complete) == ("One two", False)
    (request,) = backend.requests
    assert request.conversation.messages[0].text == prompts.CAPTION["detailed"].text
    assert request.conversation.pictures[0].crops == "off"
    with pytest.raises(ConversationError, match="'short' or 'detailed'"):
        gv.caption(backend, RED, detail="long")


def test_options_reach_the_model():
    backend = ScriptedBackend()
    backend.add_adapter("poems", "somewhere")
    options = {"sampling": Sample(seed=3), "logprobs": 2, "adapter": "poems", "session": "me"}
    gv.answer(backend, RED, "Which?", stop=("!",), **options)
    (request,) = backend.requests
    assert {name: getattr(request, name) for name in options} == options
    assert request.stop == ("!",)


@pytest.mark.parametrize("pictures", [RED, [RED], np.asarray(RED)], ids=["one", "list", "array"])
def test_a_question_stands_behind_its_pictures(pictures):
    backend = ScriptedBackend()
    assert str(gv.answer(backend, pictures, "Which colour?")) == "Which colour?"
    (message,) = backend.requests[0].conversation.messages
    assert message.parts[1:] == (Text("Which colour?"),)
    assert len(message.pictures) == 1


def test_pictures_are_compared_under_their_numbers():
    backend = ScriptedBackend(["They differ."])
    assert gv.compare(backend, RED, BLUE, GREEN).text == "They differ."
    gv.compare(backend, RED, BLUE, question="Which is warmer?")
    first, second = (request.conversation.messages[0] for request in backend.requests)
    assert first.parts == (
        *(Text("Picture 1:"), Picture.open(RED)),
        *(Text("Picture 2:"), Picture.open(BLUE)),
        *(Text("Picture 3:"), Picture.open(GREEN)),
        Text(prompts.COMPARE.text),
    )
    assert second.parts[-1] == Text("Which is warmer?")


@pytest.mark.parametrize(
    ("ask", "error", "told"),
    [
        (lambda b: gv.answer(b, RED, " "), ConversationError, "question is empty"),
        (lambda b: gv.compare(b, RED, BLUE, question=""), ConversationError, "question is empty"),
        (lambda b: gv.caption(b, "no-such.png"), PictureError, "no-such.png"),
        (lambda b: gv.caption(b, RED), EngineError, "It broke"),
    ],
)
def test_what_is_wrong_is_told(ask, error, told):
    with pytest.raises(error, match=told):
        ask(ScriptedBackend(["Well "], error=EngineError("It broke.")))


@pytest.mark.slow
def test_the_demo_captions_a_drawing():
    circle = Path(__file__).parents[2] / "docs" / "circle.png"
    with gv.load("demo") as demo:
        assert str(gv.caption(demo, circle)) == "A large red circle in the middle."
        assert "red circle in the middle" in str(gv.caption(demo, circle, detail="detailed"))
