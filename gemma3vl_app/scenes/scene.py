"""Made-up scenes of shapes: what is in them, drawn at random from a seed.

A `Scene` is a value; `drawing` makes a picture of it and `questions` asks about it.
Places and sizes are fractions of the picture: x to the right, y down, both 0 to 1; a radius is a
fraction of the shorter side.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Literal

SHAPES = (
    *("circle", "oval", "square", "rectangle", "triangle"),
    *("star", "diamond", "cross", "heart", "arrow"),
)
COLOURS = (
    *("red", "orange", "yellow", "green", "cyan", "blue"),
    *("purple", "pink", "brown", "black", "gray", "white"),
)
PLACES = (
    *("at the top left", "at the top", "at the top right"),
    *("on the left", "in the middle", "on the right"),
    *("at the bottom left", "at the bottom", "at the bottom right"),
)
Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = ("small", "medium", "large")
Style = Literal["plain", "smooth", "sketch", "bordered", "shaded"]
STYLES: tuple[Style, ...] = ("plain", "smooth", "sketch", "bordered", "shaded")
Fill = Literal["plain", "graded", "noisy"]
MOST_THINGS = 6

# Pairs that are never trained on: whoever names them has learned shapes and colours apart.
HELD_OUT_PAIRS = frozenset(
    (COLOURS[(3 * number + 2) % len(COLOURS)], shape) for number, shape in enumerate(SHAPES)
)

_RADII: dict[Size, tuple[float, float]] = {  # far enough apart to be told from each other
    "small": (0.075, 0.10),
    "medium": (0.13, 0.165),
    "large": (0.21, 0.27),
}
_GAP = 0.025  # between two things, and from a thing to the picture's edge
_LARGEST = 0.43  # radius
_UNCLEAR = 0.025  # so close to the border between two places, no centre lies
_CENTRED = 0.15  # of all positions are just in the middle
_TRIES = 60


@dataclass(frozen=True)
class Thing:
    """One shape: its centre, radius and angle in radians; `outlined` ones are not filled."""

    shape: str
    colour: str
    size: Size
    outlined: bool
    x: float
    y: float
    radius: float
    angle: float

    @property
    def pair(self) -> tuple[str, str]:
        """Colour and shape."""
        return self.colour, self.shape

    @property
    def place(self) -> str:
        """In which ninth of the picture its centre lies, such as "at the top left"."""
        return PLACES[3 * _third(self.y) + _third(self.x)]


@dataclass(frozen=True)
class Scene:
    """Things in reading order on a background; `aspect` is the picture's width by its height."""

    things: tuple[Thing, ...]
    background: str
    fill: Fill
    style: Style
    aspect: float


def random_scene(
    rng: random.Random,
    *,
    count: int | None = None,
    held_out: bool = False,
    scale: float = 1.0,
    black: bool = False,
) -> Scene:
    """Return a scene of `count` things, or of one to six.

    `held_out` puts in at least one of `HELD_OUT_PAIRS`, otherwise there are none. `scale` makes
    every thing larger, for pictures of one. `black` draws them black and filled on plain white.
    """
    wanted = rng.choices(range(1, MOST_THINGS + 1), weights=(4, 5, 5, 4, 3, 2))[0]
    wanted = count or wanted
    aspect = 1.0 if rng.random() < 0.5 else math.exp(rng.uniform(-0.29, 0.29))  # 3:4 to 4:3
    background = "white" if rng.random() < 0.4 else rng.choice(COLOURS)
    things: list[Thing] = []
    while len(things) < wanted:
        colour, shape = _pair(rng, things, background, held_out=held_out and not things)
        thing = _place(rng, things, colour, shape, wanted, aspect, scale)
        if thing is None:
            things.clear()  # too crowded: begin anew
        else:
            things.append(thing)
    fill: Fill = rng.choices(("plain", "graded", "noisy"), weights=(6, 2, 2))[0]
    if black:
        things = [replace(each, colour="black", outlined=False) for each in things]
        return Scene(tuple(things), "white", "plain", "plain", aspect)
    ordered = sorted(things, key=lambda each: (_third(each.y), _third(each.x), each.x))
    return Scene(tuple(ordered), background, fill, rng.choice(STYLES), aspect)


def _pair(
    rng: random.Random, things: list[Thing], background: str, *, held_out: bool
) -> tuple[str, str]:
    """Draw a colour and a shape: sometimes those of a thing that is there, for counting."""
    trained = [thing for thing in things if thing.pair not in HELD_OUT_PAIRS]
    if trained and rng.random() < 0.15:
        return rng.choice(trained).pair
    while True:
        pair = rng.choice(COLOURS), rng.choice(SHAPES)
        if pair[0] not in _LIKE[background] and (pair in HELD_OUT_PAIRS) == held_out:
            return pair


# Colours that are hard to see on a background.
_LIKE = {colour: {colour} for colour in COLOURS}
for _one, _other in (
    ("orange", "red"),
    ("orange", "yellow"),
    ("orange", "brown"),
    ("brown", "red"),
    ("brown", "black"),
    ("pink", "purple"),
    ("pink", "red"),
    ("cyan", "green"),
    ("cyan", "blue"),
    ("purple", "blue"),
    ("yellow", "white"),
    ("gray", "brown"),
):
    _LIKE[_one].add(_other)
    _LIKE[_other].add(_one)


def _place(
    rng: random.Random,
    things: list[Thing],
    colour: str,
    shape: str,
    wanted: int,
    aspect: float,
    scale: float,
) -> Thing | None:
    """Find room for one more thing; None where there seems to be none."""
    for _ in range(_TRIES):
        size = rng.choices(SIZES, weights=(3, 3, 3 if wanted < 3 else 1 if wanted < 5 else 0))[0]
        radius = min(_LARGEST, scale * rng.uniform(*_RADII[size]))
        # A fraction of the shorter side; along the longer one it is less.
        across, down = radius / max(1.0, aspect), radius * min(1.0, aspect)
        x = _position(rng, across + _GAP)
        y = _position(rng, down + _GAP)
        if _unclear(x) or _unclear(y):
            continue
        thing = Thing(shape, colour, size, rng.random() < 0.2, x, y, radius, _angle(rng, shape))
        if all(_apart(thing, other, aspect) for other in things):
            return thing
    return None


def _position(rng: random.Random, from_edge: float) -> float:
    """Draw a position, at least so far from both edges: people put many things in the middle."""
    return 0.5 if rng.random() < _CENTRED else rng.uniform(from_edge, 1 - from_edge)


def _angle(rng: random.Random, shape: str) -> float:
    """Draw a rotation under which the shape keeps its name: a square on its tip is a diamond."""
    if shape in ("star", "triangle", "arrow"):
        return rng.uniform(-math.pi, math.pi)
    if shape in ("oval", "rectangle"):
        return rng.uniform(-0.25, 0.25) + (math.pi / 2 if rng.random() < 0.5 else 0)
    return rng.uniform(-0.25, 0.25)


def _apart(a: Thing, b: Thing, aspect: float) -> bool:
    """Whether two things do not touch; distances in units of the shorter side."""
    distance = math.hypot((a.x - b.x) * max(1.0, aspect), (a.y - b.y) / min(1.0, aspect))
    return distance > a.radius + b.radius + _GAP


def _third(position: float) -> int:
    return min(2, int(3 * position))


def _unclear(position: float) -> bool:
    return min(abs(position - 1 / 3), abs(position - 2 / 3)) < _UNCLEAR
