import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from gemma3vl_app.finetune import charts
from gemma3vl_app.finetune.charts import LEAST_LEAD, Chart, draw_chart, draw_with_letters
from gemma3vl_app.scenes.drawing import TONES
from gemma3vl_app.scenes.fonts import FAMILIES
from gemma3vl_app.scenes.printed import LEAST_HEIGHT, brightness
from gemma3vl_app.scenes.scene import COLOURS
from gemma3vl_app.scenes.words import HELD_OUT_WORDS

pytestmark = pytest.mark.usefixtures("needs_fonts")


@pytest.fixture
def uncompressed(monkeypatch):
    monkeypatch.setattr(charts, "compressed", lambda picture, rng: picture)


def some(count: int, **options: bool) -> list[Chart]:
    rng = random.Random(5)
    return [charts.random_chart(rng, **options) for _ in range(count)]


def texts(chart: Chart) -> list[str]:
    pairs = [(bar.label, str(bar.value) if chart.numbered else "") for bar in chart.bars]
    return [text for pair in pairs for text in pair if text]


def test_the_same_seed_gives_the_same_chart_and_the_same_picture():
    first, second = (charts.random_chart(random.Random(7)) for _ in range(2))
    assert first == second
    one, other = (draw_chart(first, random.Random(8)) for _ in range(2))
    assert one.tobytes() == other.tobytes()


def test_the_tallest_and_the_shortest_bar_lead_clearly():
    for chart in some(300):
        values = sorted(bar.value for bar in chart.bars)
        least = LEAST_LEAD * chart.top
        assert values[1] - values[0] >= least and values[-1] - values[-2] >= least
        assert min(values) > 0 and max(values) <= chart.top
        assert (chart.tallest.value, chart.shortest.value) == (values[-1], values[0])
        assert len({bar.label for bar in chart.bars}) == len(chart.bars)
        assert chart.background not in {bar.colour for bar in chart.bars}
        assert chart.letter >= LEAST_HEIGHT


def test_everything_there_is_occurs():
    drawn = some(600)
    assert {len(chart.bars) for chart in drawn} == {2, 3, 4, 5}
    assert {bar.colour for chart in drawn for bar in chart.bars} == set(COLOURS)
    for flag in ("upright", "numbered", "edged", "grid"):
        assert {getattr(chart, flag) for chart in drawn} == {True, False}


def test_held_out_words_and_fonts_come_only_where_they_are_asked_for():
    for held_out in (False, True):
        for chart in some(300, held_out=held_out):
            assert FAMILIES[chart.face.family].held_out == held_out
            for bar in chart.bars:
                if len(bar.label) > 1:
                    assert (bar.label.lower() in HELD_OUT_WORDS) == held_out


def test_all_charts_can_be_drawn_with_every_letter_inside_and_no_two_on_each_other():
    rng = random.Random(3)
    for chart in some(300):
        _, letters = draw_with_letters(chart, rng)
        assert "".join(each.character for each in letters) == "".join(texts(chart))
        assert all(0 <= each.left < each.right <= 1 for each in letters)
        assert all(0 <= each.top < each.bottom <= 1 for each in letters)
        rest = iter(letters)
        parts = [list(itertools.islice(rest, len(text))) for text in texts(chart)]
        for one, other in itertools.combinations(parts, 2):
            beside = max(each.right for each in one) < min(each.left for each in other)
            under = max(each.bottom for each in one) < min(each.top for each in other)
            over = min(each.top for each in one) > max(each.bottom for each in other)
            assert beside or under or over


def test_bars_are_drawn_as_long_as_their_values_say(uncompressed):
    side = 320
    for chart in some(80):
        chart = replace(chart, fill="plain", grid=False, edged=False)
        pixels = np.asarray(draw_chart(chart, random.Random(1), side=side)).astype(int)
        lengths = []
        for left, top, right, bottom in charts.bar_boxes(chart):
            x, y = round(side * (left + right) / 2), round(side * (top + bottom) / 2)
            line = pixels[: round(side * bottom), x][::-1] if chart.upright else None
            line = pixels[y, round(side * left) + 2 :] if line is None else line
            same = (line == line[1]).all(axis=1)[1:]  # the first may be the axis
            lengths.append(int(np.argmin(same)) + 1)
        longest = max(lengths)
        for bar, length in zip(chart.bars, lengths, strict=True):
            assert length == pytest.approx(longest * bar.value / chart.tallest.value, abs=4)


def test_labels_are_where_their_letters_are_said_to_be(uncompressed):
    for chart in some(60):
        chart = replace(chart, fill="plain", grid=False)
        picture, letters = draw_with_letters(chart, random.Random(1), side=320)
        pixels = np.asarray(picture.convert("L")).astype(int)
        high, wide = pixels.shape
        ground = np.median(pixels[:3])
        for each in letters:
            rows = slice(max(0, int(each.top * high)), int(each.bottom * high) + 1)
            columns = slice(max(0, int(each.left * wide)), int(each.right * wide) + 1)
            assert np.abs(pixels[rows, columns] - ground).max() > 35


def test_what_is_written_is_black_or_white_whichever_can_be_read():
    for chart in some(300):
        assert chart.ink in ("black", "white")
        gaps = [
            abs(brightness(one) - brightness(other))
            for one, other in itertools.product(TONES[chart.ink], TONES[chart.background])
        ]
        assert min(gaps) > 64
