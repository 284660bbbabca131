"""What the panel at a word is drawn from."""

import base64
import io
import math

import pytest
from PIL import Image

from gemma3vl_app.generation import Alternative, Token
from gemma3vl_app.webui.explanation import Drawing, Found
from gemma3vl_app.webui.why_view import as_values, data_url, percent, visible
from gemma3vl_app.webui.words import ENGLISH, FRENCH, LANGUAGES

RED = Token(
    1, " red", math.log(0.8), (Alternative(1, " red", math.log(0.8)), Alternative(2, "\n", -7.0))
)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a-red.png", tmp_path / "b-tall.png"]
    Image.new("RGB", (40, 20)).save(paths[0])
    Image.new("RGB", (10, 30)).save(paths[1])
    return [str(path) for path in paths]


def values(found, files=(), words=ENGLISH, word="red"):
    return as_values(found, words, number=3, word=word, files=files)


def test_pictures_are_there_before_their_heat_in_the_same_size(files):
    plain = values(Found(method="attention"), files)
    image = Image.new("RGB", (8, 4))
    drawings = (Drawing(image, (image, image), 0.7), Drawing(image, (), 0.3))
    drawn = values(Found(method="attention", drawings=drawings), files)
    sizes = [[(each["width"], each["height"]) for each in v["pictures"]] for v in (plain, drawn)]
    assert sizes == [[(40, 20), (10, 30)]] * 2
    assert [len(each["crops"]) for each in drawn["pictures"]] == [2, 0]
    assert drawn["pictures"][1]["caption"] == "Picture 2: 30 % of the heat"
    assert (plain["is_drawn"], drawn["is_drawn"]) == (False, True)
    assert plain["pictures"][0]["caption"] == ""


def test_a_drawing_is_sent_as_data():
    start, data = data_url(Image.new("RGB", (8, 4), "red")).split(",")
    assert start == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (8, 4)


def test_each_token_says_how_likely_it_was_and_what_else(files):
    (token,) = values(Found(method="attention", tokens=(RED,)), files)["tokens"]
    assert (token["text"], token["percent"], token["probability"]) == ("red", "80 %", 0.8)
    assert token["others"] == [{"text": "↵", "percent": "< 1 %"}]


def test_tokens_of_one_character_are_told_as_one():
    parts = (Token(1, "", -0.5), Token(2, "", -0.25), Token(3, "🔴", 0.0), RED)
    told = values(Found(method="attention", tokens=parts))["tokens"]
    assert [each["text"] for each in told] == ["🔴", "red"]
    assert told[0]["probability"] == round(math.exp(-0.75), 3)


def test_another_model_is_told():
    found = Found(method="attention", wrote="4b-it, bf16", reads="Demo, fp32")
    note = values(found)["note"]
    assert "written by 4b-it, bf16" in note
    assert "Demo, fp32" in note
    assert values(Found(method="attention", reads="Demo"))["note"] == ""


@pytest.mark.parametrize(
    ("strongest", "after"), [(math.log(2), "40 %"), (0, "80 %"), (-9, "100 %")]
)
def test_the_effect_of_covering_is_told_in_percent(files, strongest, after):
    drawing = Drawing(Image.new("RGB", (8, 4)), (), 1.0)
    found = Found(method="occlusion", tokens=(RED,), drawings=(drawing,), strongest=strongest)
    assert values(found, files)["effect"].endswith(f"80 % → {after}")


@pytest.mark.parametrize("words", LANGUAGES.values())
def test_every_language_says_all_of_it(words, files):
    for method in ("attention", "saliency", "occlusion"):
        shown = values(Found(method=method, was_stopped=True, wrote="a", reads="b"), files, words)
        texts = [shown["title"], shown["says"], shown["line"], shown["note"]]
        assert all(text and "{" not in text for text in texts)
    assert values(Found(method="attention"), words=FRENCH)["says"] == FRENCH["why_no_picture"]


def test_a_word_may_be_anything():
    assert values(Found(method="attention"), word="{0} <b>")["title"] == "Why “{0} <b>”?"


@pytest.mark.parametrize(
    ("text", "shown"), [(" red ", "red"), ("\n\n", "↵↵"), (" ", "␣"), ("", "∅"), ("<b>", "<b>")]
)
def test_white_space_can_be_seen_where_it_is_all_there_is(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("share", "told"),
    [(0.0, "0 %"), (0.001, "< 1 %"), (0.006, "1 %"), (0.5, "50 %"), (1.0, "100 %")],
)
def test_what_is_tiny_is_not_told_as_nothing(share, told):
    assert percent(share) == told
