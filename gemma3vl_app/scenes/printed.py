"""Made-up prints: what is printed, drawn at random from a seed, and how it looks.

A `Print` is a value; `print_drawing` makes a picture of it and `reading_questions` asks about it.
Places and sizes are fractions of the picture as in `scene`: x to the right, y down; heights of
letters are fractions of the shorter side.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, product
from typing import Literal

import numpy as np
import numpy.typing as npt

from gemma3vl_app.scenes import fonts
from gemma3vl_app.scenes.drawing import TONES, Rgb
from gemma3vl_app.scenes.fonts import Face
from gemma3vl_app.scenes.scene import COLOURS, Fill
from gemma3vl_app.scenes.words import HELD_OUT_WORDS, TRAINED_WORDS, made_up_word

Points = npt.NDArray[np.float64]  # (N, 2)
Matrix = npt.NDArray[np.float64]  # (3, 3), projective
Way = Literal["plain", "hard", "shadow", "sign"]
WAYS: tuple[Way, ...] = ("plain", "hard", "shadow", "sign")
Align = Literal["left", "center", "right"]
MOST_LINES = 3

LEAST_CONTRAST = 64  # between the brightness of text and of all that is behind it, of 255
LEAST_HEIGHT = 0.08  # of a capital letter: 15 pixels in a picture of 192
_MOST_HEIGHT = 0.4
_LARGE, _LARGEST = 0.25, 0.6  # of a few characters alone: 16 to 38 pixels in a picture of 64
_EDGE = 0.035  # between text and the picture's edge
ABOVE, BELOW = 1.1, 0.35  # how far letters reach over and under a line, in heights of a capital
SIGN = 0.35  # by how much a sign is larger than its text, in heights of a capital
_TRIES = 30
_MADE_UP = 0.35  # share of words


@dataclass(frozen=True)
class Print:
    """Lines of text as they stand; `surround` is the colour around a sign, else the background's.

    `size` is the height of a capital letter, `spacing` of a line in such heights; `x` and `y` are
    the text's centre, `angle` is in radians, and `lean` makes letters smaller to one side.
    """

    lines: tuple[str, ...]
    face: Face
    colour: str
    background: str
    surround: str
    fill: Fill
    way: Way
    size: float
    spacing: float
    x: float
    y: float
    align: Align
    angle: float
    lean: tuple[float, float]
    aspect: float

    @property
    def words(self) -> tuple[str, ...]:
        """What stands between spaces, in reading order."""
        return tuple(word for line in self.lines for word in line.split())


# --- what is printed ------------------------------------------------------------------------------


def random_print(rng: random.Random, *, held_out: bool = False) -> Print:
    """Return a print of one to four words or numbers in one to three lines.

    `held_out` takes only words and fonts that are never trained on, otherwise there are none.

    Raises:
        TrainingError: too few fonts are installed.
    """
    while True:
        lines = _lines(random_words(rng, held_out=held_out), rng)
        placed = _placed(_unplaced(lines, rng, held_out=held_out), rng)
        if placed is not None:
            return placed


def random_characters(rng: random.Random) -> Print:
    """Return a print of one to three characters that fill much of a small picture.

    Raises:
        TrainingError: too few fonts are installed.
    """
    while True:
        count = rng.choices((1, 2, 3), weights=(5, 3, 2))[0]
        line = "".join(rng.choice(fonts.CHARACTERS) for _ in range(count))
        placed = _placed(_unplaced((line,), rng), rng, least=_LARGE, most=_LARGEST)
        if placed is not None:
            return placed


def _unplaced(lines: tuple[str, ...], rng: random.Random, *, held_out: bool = False) -> Print:
    """Draw how lines look, but for their size and place."""
    colour, behind = random_colours(rng)
    way: Way = rng.choices(WAYS, weights=(5, 1, 2, 2))[0]
    level = way == "hard"  # turned pixel by pixel, thin letters would fall apart
    return Print(
        lines=lines,
        face=random_face(rng, held_out=held_out),
        colour=colour,
        background=behind,
        surround=rng.choice([c for c in COLOURS if c != behind]) if way == "sign" else behind,
        fill=rng.choices(("plain", "graded", "noisy"), weights=(6, 2, 2))[0],
        way=way,
        size=LEAST_HEIGHT,
        spacing=rng.uniform(1.55, 2.2),
        x=0.5,
        y=0.5,
        align=rng.choices(("left", "center", "right"), weights=(3, 5, 1))[0],
        angle=0.0 if level or rng.random() < 0.55 else rng.uniform(-0.16, 0.16),
        lean=(0.0, 0.0) if level or rng.random() < 0.65 else (_lean(rng), _lean(rng)),
        aspect=1.0 if rng.random() < 0.5 else math.exp(rng.uniform(-0.29, 0.29)),
    )


def random_words(rng: random.Random, *, held_out: bool = False) -> tuple[str, ...]:
    """Draw one to four words or numbers, written in one way: small, capital or as a title."""
    draw = rng.random()
    if draw < 0.17:
        return (random_number(rng),)
    if draw < 0.27:
        return tuple(_code(rng) for _ in range(rng.choices((1, 2), weights=(3, 1))[0]))
    count = rng.choices((1, 2, 3, 4), weights=(8, 5, 3, 2))[0]
    words = [random_word(rng, held_out=held_out) for _ in range(count)]
    words = list(_written(words, rng))
    if draw > 0.9 and count < 4:
        words.insert(rng.choice((0, count)), random_number(rng))
    elif rng.random() < 0.08:
        words[-1] += rng.choice("!?.")
    return tuple(words)


def random_word(rng: random.Random, *, held_out: bool = False) -> str:
    """Draw a word in small letters: of those trained on, at times a made-up one, or held out."""
    if held_out:
        return rng.choice(sorted(HELD_OUT_WORDS))
    return made_up_word(rng) if rng.random() < _MADE_UP else rng.choice(TRAINED_WORDS)


def random_number(rng: random.Random) -> str:
    """Draw a number, price, percentage, time, date or telephone number."""
    return rng.choice(_NUMBERS)(rng)


_NUMBERS: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: str(rng.randrange(10 ** rng.randint(1, 5))),
    lambda rng: str(rng.randint(1900, 2099)),
    lambda rng: f"{rng.randint(1_000, 999_999):,}",
    lambda rng: f"{rng.uniform(0, 100):.{rng.randint(1, 2)}f}",
    lambda rng: f"-{rng.randint(1, 99)}",
    lambda rng: f"${rng.randint(1, 999)}",
    lambda rng: f"${rng.randint(0, 199)}.{rng.choice(('00', '50', '95', '99', '25', '49'))}",
    lambda rng: f"{rng.randint(1, 100)}%",
    lambda rng: f"{rng.randint(0, 23)}:{rng.randrange(60):02}",
    lambda rng: f"{rng.randint(1, 12)}/{rng.randint(1, 28)}/{rng.randint(1990, 2039)}",
    lambda rng: f"{rng.randint(1990, 2039)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
    lambda rng: f"{rng.randint(200, 999)}-{rng.randrange(10_000):04}",
)
# No vowels, which would make words, and nothing that looks like a digit.
_CODE_LETTERS = "".join(c for c in string.ascii_uppercase if c not in "AEIOUL")


def _code(rng: random.Random) -> str:
    """Draw what stands on number plates and parcels: letters and digits that no one can guess."""
    letters = "".join(rng.choice(_CODE_LETTERS) for _ in range(rng.randint(1, 3)))
    digits = "".join(rng.choice("123456789") for _ in range(rng.randint(1, 4)))
    if rng.random() < 0.25:
        letters = letters.lower()
    return f"{letters}{rng.choice(('', '', '-'))}{digits}"


def _written(words: list[str], rng: random.Random) -> list[str]:
    """Set words in small letters, in capitals, or with capitals at the beginning."""
    draw = rng.random()
    if draw < 0.25:
        return words
    if draw < 0.5:
        return [word.upper() for word in words]
    if draw < 0.85:
        return [word.capitalize() for word in words]
    return [words[0].capitalize(), *words[1:]]


def _lines(words: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """Break words into one to three lines."""
    breaks = rng.randint(0, min(MOST_LINES, len(words)) - 1)
    at = [0, *sorted(rng.sample(range(1, len(words)), breaks)), len(words)]
    return tuple(" ".join(words[start:end]) for start, end in pairwise(at))


# --- how it looks ---------------------------------------------------------------------------------


def random_face(rng: random.Random, *, held_out: bool = False) -> Face:
    """Draw a family, then one of its faces: families of one face come as often as others."""
    known = fonts.faces(held_out=held_out)
    family = rng.choice(sorted({face.family for face in known}))
    of_it = [face for face in known if face.family == family]
    return rng.choices(of_it, weights=[1 if face.italic else 2 for face in of_it])[0]


def random_colours(rng: random.Random) -> tuple[str, str]:
    """Draw a colour for text and one behind it, far enough apart in brightness."""
    if rng.random() < 0.25:
        return rng.choice((("black", "white"), ("black", "white"), ("white", "black")))
    return rng.choice(readable_pairs())


@lru_cache(maxsize=1)
def readable_pairs() -> tuple[tuple[str, str], ...]:
    """Return colours of text and of backgrounds most of whose tones are far enough apart."""
    pairs = []
    for text, behind in product(COLOURS, COLOURS):
        gaps = tone_gaps(text, behind)
        if sum(gap > 1.2 * LEAST_CONTRAST for gap in gaps) > len(gaps) / 2:
            pairs.append((text, behind))
    return tuple(pairs)


def tone_gaps(colour: str, other: str) -> list[float]:
    """Return how far apart in brightness each tone of one colour and each of another are."""
    return [
        abs(brightness(one) - brightness(two)) for one, two in product(TONES[colour], TONES[other])
    ]


def brightness(rgb: Rgb) -> float:
    """Return how bright a tone is, 0 to 255: the luma of Rec. 601, as Pillow's mode L."""
    red, green, blue = rgb
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _lean(rng: random.Random) -> float:
    return rng.uniform(-0.25, 0.25)


def _placed(
    wanted: Print, rng: random.Random, *, least: float = LEAST_HEIGHT, most: float = _MOST_HEIGHT
) -> Print | None:
    """Give a print a size and a place at which all of it is in the picture; None if it has none."""
    wide, high = _extent(wanted)
    sides = max(1.0, wanted.aspect), max(1.0, 1 / wanted.aspect)
    room = min((side - 2 * _EDGE) / of for side, of in zip(sides, (wide, high), strict=True))
    if room < least:
        return None
    for _ in range(_TRIES):
        size = rng.uniform(least, min(room, most))
        x, y = (
            rng.uniform(_EDGE + size * of / 2 / side, 1 - _EDGE - size * of / 2 / side)
            for side, of in zip(sides, (wide, high), strict=True)
        )
        placed = replace(wanted, size=size, x=x, y=y)
        half_x, half_y = size * wide / 2, size * high / 2
        corners = np.array(
            [(-half_x, -half_y), (half_x, -half_y), (half_x, half_y), (-half_x, half_y)]
        )
        moved = mapped(corners, onto_picture(placed, sides))
        if (moved >= _EDGE / 2).all() and (moved <= np.array(sides) - _EDGE / 2).all():
            return placed
    return None


def _extent(shown: Print) -> tuple[float, float]:
    """Return how wide and high the text is, in heights of a capital letter; a sign included."""
    wide = max(fonts.lay_out(shown.face, line)[1] for line in shown.lines)
    high = (len(shown.lines) - 1) * shown.spacing + ABOVE + BELOW
    more = 2 * SIGN if shown.way == "sign" else 0.0
    return wide + more, high + more


def onto_picture(shown: Print, size: tuple[float, float]) -> Matrix:
    """Return what turns and leans text around its own centre and moves it to its place.

    `size` is the picture's width and height; the text's own coordinates are in the same unit.
    """
    short = min(size)
    cos, sin = math.cos(shown.angle), math.sin(shown.angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    lean = np.array([[1, 0, 0], [0, 1, 0], [shown.lean[0] / short, shown.lean[1] / short, 1]])
    move = np.array([[1, 0, shown.x * size[0]], [0, 1, shown.y * size[1]], [0, 0, 1]])
    matrix: Matrix = move @ lean @ turn
    return matrix


def mapped(points: Points, matrix: Matrix) -> Points:
    """Return where a projective matrix takes points; (N, 2) to (N, 2)."""
    ahead = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    taken: Points = ahead[:, :2] / ahead[:, 2:]
    return taken
