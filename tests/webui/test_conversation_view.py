"""What the page's conversation is drawn from."""

import json
import math

import pytest
from PIL import Image

from gemma3vl_app.generation import Alternative, Token
from gemma3vl_app.webui.component import asset
from gemma3vl_app.webui.conversation_view import as_values
from gemma3vl_app.webui.view import Shown, View

ATTACK = "<img src=x onerror=alert(1)> ${alert(2)} {{alert}} </script>"


def test_text_of_people_and_models_is_left_as_it_is():
    view = View((Shown("user", ATTACK), Shown("assistant", ATTACK)), answering=True)
    values = as_values(view, {})
    assert [message["text"] for message in values["messages"]] == [ATTACK, ATTACK]
    assert values["answering"]
    json.dumps(values)  # it goes to the browser


def test_a_picture_is_a_link_below_the_page_with_its_size(tmp_path):
    file = tmp_path / "0123456789abcdef-my holiday#1.png"
    Image.new("RGB", (30, 20)).save(file)
    (message,) = as_values(View((Shown("user", "?", (str(file),)),)), {})["messages"]
    (picture,) = message["pictures"]
    assert picture["url"].startswith("gradio_api/file=/")
    assert "%23" in picture["url"]  # or the rest of the name would be lost
    assert (picture["name"], picture["width"], picture["height"]) == ("my holiday#1.png", 30, 20)


def test_tokens_come_with_probabilities_and_other_choices():
    red = Token(1, "Red", math.log(0.75), (Alternative(1, "Red", math.log(0.75)),))
    either = Token(2, ".", math.log(0.5), (Alternative(3, "!", math.log(0.4)),))
    view = View((Shown("assistant", "Red.", tokens=(red, either)),))
    (message,) = as_values(view, {}, show_confidence=True)["messages"]
    assert message["tokens"] == [["Red", 0.75, []], [".", 0.5, ["'!' 40%"]]]


@pytest.mark.parametrize(
    "name", ["conversation.js", "composer.js", "shelf.js", "models.js", "elements.js"]
)
def test_the_scripts_put_no_text_in_as_markup(name):
    script = asset(name)
    for markup in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert markup not in script
