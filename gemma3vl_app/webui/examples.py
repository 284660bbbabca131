"""Drawn pictures with a question each, so that a stranger can try the page with one click."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 512  # pixels
_PAPER = (245, 245, 240)
_COLOURS = {
    "red": (214, 48, 49),
    "green": (39, 160, 80),
    "blue": (43, 99, 214),
    "yellow": (245, 200, 40),
    "purple": (130, 60, 170),
    "orange": (240, 130, 30),
}
Point = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """A drawn shape: centre and radius in parts of the picture's side."""

    colour: str
    shape: str
    centre: Point
    radius: float = 0.2


@dataclass(frozen=True)
class Example:
    """A question about drawn pictures."""

    question: str
    pictures: tuple[tuple[Thing, ...], ...]


# The demo model answers these rightly; tests/web/test_demo_page.py holds it to that.
EXAMPLES = (
    Example("What is in the picture?", ((Thing("red", "circle", (0.5, 0.5), 0.25),),)),
    Example(
        "Where is the blue square?",
        ((Thing("red", "circle", (0.3, 0.3), 0.15), Thing("blue", "square", (0.7, 0.7), 0.15)),),
    ),
    Example(
        "Which picture has a star?",
        (
            (Thing("red", "circle", (0.5, 0.5), 0.25),),
            (
                Thing("green", "circle", (0.3, 0.3), 0.14),
                Thing("orange", "square", (0.7, 0.7), 0.14),
                Thing("purple", "star", (0.3, 0.7), 0.14),
            ),
        ),
    ),
)


def draw(things: tuple[Thing, ...], side: int = SIDE) -> Image.Image:
    """Draw `things` on a square picture of `side` pixels."""
    fine = 2 * side  # drawn twice as large and shrunk: smooth edges
    image = Image.new("RGB", (fine, fine), _PAPER)
    pen = ImageDraw.Draw(image)
    for thing in things:
        x, y, r = (fine * value for value in (*thing.centre, thing.radius))
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=_COLOURS[thing.colour])
        else:
            outline = [(x + r * dx, y + r * dy) for dx, dy in _OUTLINES[thing.shape]()]
            pen.polygon(outline, fill=_COLOURS[thing.colour])
    return image.resize((side, side), Image.Resampling.LANCZOS)


def save(folder: Path) -> tuple[tuple[str, ...], ...]:
    """Write the pictures of `EXAMPLES` into `folder`; return their paths, per example."""
    written = []
    for number, example in enumerate(EXAMPLES, start=1):
        paths = []
        for letter, things in zip("abcd", example.pictures, strict=False):
            path = folder / f"example-{number}{letter}.png"
            draw(things).save(path)
            paths.append(str(path))
        written.append(tuple(paths))
    return tuple(written)


def _square() -> list[Point]:
    half = 0.85
    return [(-half, -half), (half, -half), (half, half), (-half, half)]


def _polygon(corners: int) -> list[Point]:
    """Corners of a regular polygon of radius 1, the first one on top."""
    angles = [2 * math.pi * k / corners - math.pi / 2 for k in range(corners)]
    return [(math.cos(a), math.sin(a)) for a in angles]


def _star() -> list[Point]:
    """Five points; the inner corners lie at the radius where the star's edges are straight."""
    inner = math.sin(math.pi / 10) / math.sin(3 * math.pi / 10)
    return [
        (x * s, y * s) for k, (x, y) in enumerate(_polygon(10)) for s in [1 - (k % 2) * (1 - inner)]
    ]


_OUTLINES: dict[str, Callable[[], list[Point]]] = {
    "square": _square,
    "triangle": lambda: _polygon(3),
    "diamond": lambda: _polygon(4),
    "star": _star,
}
