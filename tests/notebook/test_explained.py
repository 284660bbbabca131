"""Explanations in a notebook: what is drawn, what is said of it, and nothing of it acts."""

from html.parser import HTMLParser

import numpy as np
import pytest

from gemma3vl_app.explain import Certainty, Difference, Heat, HeatMap, Layers
from gemma3vl_app.generation import Alternative, Token
from gemma3vl_app.notebook.displays import shown
from gemma3vl_app.pictures import Picture

HOSTILE = '<img src=x onerror="alert(1)">'
MAPS = tuple(
    HeatMap(0, box, np.array([[1, 2], [3, -1]], dtype=np.float32)) for box in (None, (0, 0, 20, 20))
)
PICTURE = Picture.open(np.zeros((20, 40, 3), dtype=np.uint8), name=HOSTILE)
HEAT = Heat(
    method="occlusion", says="what", words=HOSTILE, pictures=(PICTURE,), maps=MAPS, unit="nats"
)
OTHER = Alternative(7, HOSTILE, -2.0)
CERTAINTY = Certainty(
    says="what",
    tokens=(Token(1, "A", -0.01), Token(2, HOSTILE, -1.2, (OTHER,))),
    entropies=(0.1, 0.2, 0.3),
    following=(OTHER,),
)
LAYERS = Layers(
    says="what",
    tokens=(HOSTILE,),
    likeliest=((OTHER,), (Alternative(1, " ", -0.1),)),
    logprobs=np.array([[-2.0], [-0.1]], dtype=np.float32),
    kinds=("sliding", "global"),
)
DIFFERENCE = Difference(
    says="what",
    sides=("a", HOSTILE),
    tokens=("A", HOSTILE),
    kl=(0.1, 0.5, 0.0),
    logprobs=np.zeros((2, 2), dtype=np.float32),
    same_best=(True, False, True),
)


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict]] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))


@pytest.mark.parametrize("value", [HEAT, CERTAINTY, LAYERS, DIFFERENCE])
def test_texts_of_models_and_files_are_escaped(value):
    for tag, attributes in Tags(shown(value).html).seen:
        assert not any(name.startswith("on") for name in attributes)
        assert tag != "img" or attributes["src"].startswith("data:image/")


def test_a_map_is_drawn_over_the_picture_and_over_each_crop():
    images = [tag for tag, _ in Tags(shown(HEAT).html).seen if tag == "img"]
    assert len(images) == 3  # together, the whole alone, the crop alone
    assert "blue: against" in shown(HEAT).html and "what" in shown(HEAT).html


def test_unsure_tokens_are_tinted_and_listed_with_what_else_was_likely():
    html = shown(CERTAINTY).html
    assert "#ff6a00 1%" in html and "#ff6a00 45%" in html  # 1 - p, at most 65 %
    assert "30.1 %" in html and "13.5 %" in html
    assert "perplexity" in shown(CERTAINTY).text


def test_what_comes_next_is_shown_as_bars():
    following = Certainty(says="what", tokens=(), entropies=(0.1,), following=(OTHER,))
    assert "<rect" in shown(following).html
    assert shown(following).text.startswith("What comes next")


def test_the_last_layer_stands_on_top_and_blanks_are_visible():
    text = shown(LAYERS).text.splitlines()
    assert text[0] == "1 global: ␣"
    assert text[1].startswith("0 sliding")


def test_where_two_sides_part_is_said_in_figures():
    assert "mean 0.2000 nats, most 0.5000; the same likeliest token 2 times of 3" in (
        shown(DIFFERENCE).text
    )
