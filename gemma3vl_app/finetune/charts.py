"""Made-up bar charts: what they show, drawn at random from a seed, and pictures of them.

A `Chart` is a value; `reading_questions` asks about it. Which bar is the tallest and which the
shortest can be seen by anybody. Heights of letters are fractions of the picture's shorter side.
"""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from gemma3vl_app.scenes import fonts
from gemma3vl_app.scenes.drawing import Rgb, background, compressed, tone
from gemma3vl_app.scenes.fonts import Face
from gemma3vl_app.scenes.print_drawing import Letter, write
from gemma3vl_app.scenes.printed import LEAST_CONTRAST, LEAST_HEIGHT, random_face, tone_gaps
from gemma3vl_app.scenes.scene import COLOURS, Fill, Scene
from gemma3vl_app.scenes.words import HELD_OUT_WORDS, TRAINED_WORDS

FEWEST_BARS, MOST_BARS = 2, 5
LEAST_LEAD = 0.12  # of the axis: from the tallest to the next, and from the shortest to the next
_TOPS = (10, 20, 50, 100)  # what axes end at
_SHORTEST, _TALLEST = 0.1, 0.6  # of the axis: no bar is shorter, one is at least so tall
_LABEL = 4  # letters of a word under a bar
_LARGEST_LETTER = 0.105
_EDGE = 0.05
_GRID_LINES = 4


@dataclass(frozen=True)
class Bar:
    """One bar."""

    label: str
    colour: str
    value: int


@dataclass(frozen=True)
class Chart:
    """Bars from left to right, or from top to bottom where they are not `upright`.

    The axis ends at `top`. `numbered` bars have their value at their end, `edged` ones a line
    around them; `thickness` is a bar's width as a part of its room; `ink` is the text's colour.
    """

    bars: tuple[Bar, ...]
    top: int
    upright: bool
    numbered: bool
    edged: bool
    grid: bool
    face: Face
    letter: float
    thickness: float
    ink: str
    background: str
    fill: Fill
    aspect: float

    @property
    def tallest(self) -> Bar:
        """The bar of the greatest value."""
        return max(self.bars, key=lambda bar: bar.value)

    @property
    def shortest(self) -> Bar:
        """The bar of the smallest value."""
        return min(self.bars, key=lambda bar: bar.value)


# --- what it shows --------------------------------------------------------------------------------


def random_chart(rng: random.Random, *, held_out: bool = False) -> Chart:
    """Return a chart of two to five bars.

    `held_out` takes only words and fonts that are never trained on, otherwise there are none.

    Raises:
        TrainingError: too few fonts are installed.
    """
    while True:
        count = rng.choices(range(FEWEST_BARS, MOST_BARS + 1), weights=(3, 5, 4, 3))[0]
        behind, ink = _ground(rng)
        numbered = rng.random() < 0.4
        chart = Chart(
            bars=(),
            top=rng.choice(_TOPS),
            upright=rng.random() < 0.75,
            numbered=numbered,
            edged=rng.random() < 0.3,
            grid=not numbered and rng.random() < 0.4,  # its lines would go through the numbers
            face=random_face(rng, held_out=held_out),
            letter=rng.uniform(LEAST_HEIGHT, _LARGEST_LETTER),
            thickness=rng.uniform(0.45, 0.85),
            ink=ink,
            background=behind,
            fill="plain" if rng.random() < 0.8 else "noisy",
            aspect=1.0 if rng.random() < 0.4 else math.exp(rng.uniform(-0.1, 0.29)),
        )
        labels = _labels(rng, count, held_out=held_out)
        colours = _colours(rng, count, behind, edged=chart.edged)
        values = _values(rng, count, chart.top)
        bars = tuple(Bar(*each) for each in zip(labels, colours, values, strict=True))
        chart = replace(chart, bars=bars)
        if _fits(chart):
            return chart


def _ground(rng: random.Random) -> tuple[str, str]:
    """Draw a background, mostly white, and black or white for what is written on it."""
    while True:
        behind = "white" if rng.random() < 0.6 else rng.choice(COLOURS)
        inks = [ink for ink in ("black", "white") if _clear(ink, behind)]
        if inks:
            return behind, rng.choice(inks)


def _clear(colour: str, behind: str) -> bool:
    return min(tone_gaps(colour, behind)) > LEAST_CONTRAST


def _labels(rng: random.Random, count: int, *, held_out: bool) -> list[str]:
    """Draw the first letters of the alphabet, any letters, or short words."""
    draw = rng.random()
    if draw < 0.35:
        return list(string.ascii_uppercase[:count])
    if draw < 0.6:
        return rng.sample(string.ascii_uppercase, count)
    words = sorted(HELD_OUT_WORDS) if held_out else TRAINED_WORDS
    return [word.capitalize() for word in rng.sample([w for w in words if len(w) <= _LABEL], count)]


def _colours(rng: random.Random, count: int, behind: str, *, edged: bool) -> list[str]:
    """Draw a colour for each bar, or one for all; without an edge they have to stand out."""
    seen = [c for c in COLOURS if c != behind and (edged or _clear(c, behind))]
    if rng.random() < 0.25 or len(seen) < count:
        return [rng.choice(seen)] * count
    return rng.sample(seen, count)


def _values(rng: random.Random, count: int, top: int) -> list[int]:
    least = math.ceil(_SHORTEST * top)
    while True:
        values = [rng.randint(least, top) for _ in range(count)]
        ordered = sorted(values)
        leads = ordered[1] - ordered[0], ordered[-1] - ordered[-2]
        if min(leads) >= LEAST_LEAD * top and ordered[-1] >= _TALLEST * top:
            return values


# --- where everything is, in units of the shorter side --------------------------------------------


@dataclass(frozen=True)
class _Plot:
    """The rectangle that bars stand in, from the foot of the first to the end of the axis."""

    left: float
    top: float
    right: float
    bottom: float


def _plot(chart: Chart) -> _Plot:
    wide, high = max(1.0, chart.aspect), max(1.0, 1 / chart.aspect)
    over = 1.6 * chart.letter if chart.numbered else 0.0
    if chart.upright:
        return _Plot(_EDGE, _EDGE + over, wide - _EDGE, high - _EDGE - 1.8 * chart.letter)
    beside = 0.5 * chart.letter
    labels = max(_width(chart, bar.label) for bar in chart.bars) + beside
    numbers = max(_width(chart, str(bar.value)) for bar in chart.bars) + beside
    right = wide - _EDGE - (numbers if chart.numbered else 0.0)
    return _Plot(_EDGE + labels, _EDGE, right, high - _EDGE)


def _width(chart: Chart, line: str) -> float:
    return fonts.lay_out(chart.face, line)[1] * chart.letter


def _room(chart: Chart) -> float:
    """Return how much of the axis under the bars each has."""
    plot = _plot(chart)
    across = plot.right - plot.left if chart.upright else plot.bottom - plot.top
    return across / len(chart.bars)


def _fits(chart: Chart) -> bool:
    """Tell whether no two labels touch and the bars have room to differ in length."""
    plot = _plot(chart)
    if not chart.upright:
        return plot.right - plot.left > 0.45
    texts = [text for bar in chart.bars for text in (bar.label, str(bar.value))]
    return max(_width(chart, text) for text in texts) < 0.88 * _room(chart)


def bar_boxes(chart: Chart) -> tuple[tuple[float, float, float, float], ...]:
    """Return where each bar is: left, top, right, bottom, in units of the shorter side."""
    plot, room = _plot(chart), _room(chart)
    boxes = []
    for number, bar in enumerate(chart.bars):
        part = bar.value / chart.top
        start = (plot.left if chart.upright else plot.top) + (number + 0.5) * room
        low, high = start - chart.thickness * room / 2, start + chart.thickness * room / 2
        if chart.upright:
            boxes.append((low, plot.bottom - part * (plot.bottom - plot.top), high, plot.bottom))
        else:
            boxes.append((plot.left, low, plot.left + part * (plot.right - plot.left), high))
    return tuple(boxes)


# --- pictures of it, in pixels --------------------------------------------------------------------


def draw_chart(chart: Chart, rng: random.Random, *, side: int | None = None) -> Image.Image:
    """Draw a chart; `side` is the shorter side in pixels, 160 to 320 without it.

    The same chart, fonts and state of `rng` give the same picture.
    """
    return draw_with_letters(chart, rng, side=side)[0]


def draw_with_letters(
    chart: Chart, rng: random.Random, *, side: int | None = None
) -> tuple[Image.Image, tuple[Letter, ...]]:
    """Draw a chart, and say where each character of its labels and numbers is."""
    short = side or rng.randint(160, 320)
    size = max(short, round(short * chart.aspect)), max(short, round(short / chart.aspect))
    picture = background(Scene((), chart.background, chart.fill, "plain", 1.0), rng, *size)
    ink = tone(chart.ink, rng)
    _draw_axes(picture, chart, short, ink)
    tones = {colour: tone(colour, rng) for colour in sorted({bar.colour for bar in chart.bars})}
    pen, letters = ImageDraw.Draw(picture), []
    for bar, box in zip(chart.bars, bar_boxes(chart), strict=True):
        left, top, right, bottom = (round(short * edge) for edge in box)
        edge = ink if chart.edged else None
        pen.rectangle((left, top, right, bottom), fill=tones[bar.colour], outline=edge)
        for text, at in _texts(chart, bar, box):
            place = short * at[0], short * at[1]
            letters += write(picture, text, chart.face, chart.letter * short, place, ink)
    return compressed(picture, rng) if rng.random() < 0.3 else picture, tuple(letters)


def _draw_axes(picture: Image.Image, chart: Chart, short: int, ink: Rgb) -> None:
    """Draw the line that bars stand on, and with a grid some along it and one up the side."""
    plot = _plot(chart)
    left, top, right, bottom = (
        round(short * edge) for edge in (plot.left, plot.top, plot.right, plot.bottom)
    )
    pen = ImageDraw.Draw(picture)
    thin = max(1, short // 160)
    for number in range(1, _GRID_LINES + 1) if chart.grid else ():
        part = number / _GRID_LINES
        x, y = round(left + part * (right - left)), round(bottom - part * (bottom - top))
        line = (left, y, right, y) if chart.upright else (x, top, x, bottom)
        pen.line(line, fill=(128, 128, 128), width=1)
    if chart.upright or chart.grid:
        pen.line((left, bottom, right, bottom), fill=ink, width=thin)
    if not chart.upright or chart.grid:
        pen.line((left, top, left, bottom), fill=ink, width=thin)


def _texts(
    chart: Chart, bar: Bar, box: tuple[float, float, float, float]
) -> list[tuple[str, tuple[float, float]]]:
    """Return a bar's label and number, each with where its baseline begins."""
    left, top, right, bottom = box
    label, number = _width(chart, bar.label), _width(chart, str(bar.value))
    if chart.upright:
        middle = (left + right) / 2
        texts = [(bar.label, (middle - label / 2, bottom + 1.45 * chart.letter))]
        beside = (middle - number / 2, top - 0.35 * chart.letter)
    else:
        line = (top + bottom) / 2 + chart.letter / 2
        texts = [(bar.label, (left - label - 0.4 * chart.letter, line))]
        beside = (right + 0.4 * chart.letter, line)
    return [*texts, (str(bar.value), beside)] if chart.numbered else texts
