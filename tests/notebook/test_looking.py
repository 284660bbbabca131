"""What the model sees of a picture, what it costs, and pictures side by side."""

import re

import pytest
from PIL import Image

import gemma3vl_app as gv
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.notebook import bars, cost, curves, grid, seen
from gemma3vl_app.testing import ScriptedBackend

WIDE = Image.new("RGB", (400, 100), "red")


class Seeing(ScriptedBackend):
    """Sees each picture as a square of 8 pixels, and once more as a crop."""

    def seen(self, picture):
        return (picture.rgb.resize((8, 8)), picture.rgb.resize((8, 8)))


def test_the_very_pixels_are_shown_with_their_tokens():
    what = seen(Seeing(), WIDE)
    assert what.html.count("<img") == 2
    assert "data:image/png" in what.html
    assert what.text.splitlines()[1:] == [
        "the whole · 8 x 8 · 64 tokens",
        "crop 1 · 8 x 8 · 64 tokens",
    ]


def test_a_model_that_runs_elsewhere_does_not_tell_what_it_sees():
    with pytest.raises(ConversationError, match="runs elsewhere"):
        seen(ScriptedBackend(), WIDE)


def test_each_choice_of_crops_is_shown_with_its_tokens():
    lines = cost(ScriptedBackend(), WIDE).text.splitlines()
    assert [line.split(" · ")[0] for line in lines] == [
        'crops="off"',
        'crops="auto"',
        'crops="on"',
    ]
    assert all("64 picture tokens" in line for line in lines)


def test_pictures_stand_side_by_side_with_their_captions():
    what = grid([WIDE, WIDE], ["a <b>", "c"])
    assert what.html.count("<img") == 2
    assert "a &lt;b&gt;" in what.html and "<b>" not in what.html
    assert what.text == "a <b>\nc"


def test_captions_have_to_fit_the_pictures():
    with pytest.raises(ConversationError, match="2 pictures and 1 captions"):
        grid([WIDE, WIDE], ["one"])


def test_charts_take_their_text_colour_from_the_notebook():
    chart = bars({"4B <small>": 4.3, "27B": 27.4}, unit="billion", title="Parameters")
    assert 'fill="currentColor"' in chart.html and "4B &lt;small&gt;" in chart.html
    assert not re.search(r'fill="(black|white|#000|#fff)', chart.html)
    assert chart.text == "Parameters\n4B <small>: 4.3 billion\n27B: 27.4 billion"


def test_curves_say_where_they_end():
    chart = curves({"4B": [(0, 0), (131072, 2.8)]}, across="tokens", up="GB")
    assert chart.text == "4B: 2.8 GB"
    assert "polyline" in chart.html


def test_empty_charts_are_drawn_too():
    assert "<svg" in bars({}).html and "<svg" in curves({}).html


def test_the_local_backend_tells_the_pixels_of_its_preprocessor(tmp_path):
    from gemma3vl_app.testing import tiny_checkpoint

    with gv.load(tiny_checkpoint(tmp_path / "tiny")) as backend:
        picture = gv.Picture.open(Image.effect_noise((99, 50), 60).convert("RGB"))
        (whole,) = backend.seen(picture)
    expected = picture.rgb.resize(whole.size, resample=Image.Resampling.BILINEAR)
    assert whole.width == whole.height and whole.tobytes() == expected.tobytes()
