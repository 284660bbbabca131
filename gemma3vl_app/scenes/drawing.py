"""Pictures of scenes, drawn in several ways so that no one way of drawing is learned by heart.

Coordinates in pixels from here on; outlines are polygons (N, 2) around the origin, of radius 1.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from gemma3vl_app.scenes.scene import Scene, Thing

Points = npt.NDArray[np.float64]
Rgb = tuple[int, int, int]

# Several tones go by one name: those of paint programs and web pages, and some between.
TONES: dict[str, tuple[Rgb, ...]] = {
    "red": ((255, 0, 0), (220, 30, 30), (185, 25, 25)),
    "orange": ((255, 165, 0), (255, 140, 0), (240, 115, 25)),
    "yellow": ((255, 255, 0), (255, 235, 20), (240, 205, 40)),
    "green": ((0, 128, 0), (0, 255, 0), (60, 180, 75), (30, 110, 50)),
    "cyan": ((0, 255, 255), (70, 210, 220), (0, 185, 195)),
    "blue": ((0, 0, 255), (30, 80, 220), (65, 105, 225), (20, 40, 150)),
    "purple": ((128, 0, 128), (140, 60, 200), (100, 30, 150)),
    "pink": ((255, 105, 180), (255, 160, 205), (250, 70, 150)),
    "brown": ((139, 69, 19), (120, 72, 40), (100, 55, 20)),
    "black": ((0, 0, 0), (25, 25, 25)),
    "gray": ((128, 128, 128), (155, 155, 155), (105, 105, 105)),
    "white": ((255, 255, 255), (245, 245, 245)),
}
_JITTER = 10  # of a tone, up or down, per channel
_ROUND = 40  # corners of what has none


def draw(scene: Scene, rng: random.Random, *, side: int | None = None) -> Image.Image:
    """Draw a scene; `side` is the shorter side in pixels, 160 to 320 without it.

    The same scene and state of `rng` give the same picture.
    """
    return draw_with_mask(scene, rng, side=side)[0]


def draw_with_mask(
    scene: Scene, rng: random.Random, *, side: int | None = None
) -> tuple[Image.Image, Image.Image]:
    """Draw a scene, and where its things are: a mask of mode L, 255 within their outlines."""
    short = side or rng.randint(160, 320)
    width, height = _long(short, scene.aspect), _long(short, 1 / scene.aspect)
    factor = 2 if scene.style == "smooth" else 1
    picture = background(scene, rng, width, height).resize((width * factor, height * factor))
    mask = Image.new("L", picture.size)
    for thing in scene.things:
        points, line = _around(thing, scene, rng, picture.size)
        _draw_thing(picture, points, line, thing, scene, rng)
        ImageDraw.Draw(mask).polygon(points, fill=255)
    if factor > 1:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return compressed(picture, rng) if rng.random() < 0.3 else picture, mask


def _long(short: int, ratio: float) -> int:
    return max(short, round(short * ratio))


def tone(colour: str, rng: random.Random) -> Rgb:
    """Draw one of the tones that go by a colour's name."""
    red, green, blue = rng.choice(TONES[colour])
    reach = 0 if rng.random() < 0.3 else _JITTER
    near = [min(255, max(0, c + rng.randint(-reach, reach))) for c in (red, green, blue)]
    return near[0], near[1], near[2]


# --- outlines -------------------------------------------------------------------------------------


def outline(shape: str) -> Points:
    """Return the corners of a shape of radius 1 around the origin; (N, 2)."""
    return np.array(_OUTLINES[shape](), dtype=np.float64)


def _regular(corners: int, start: float) -> list[tuple[float, float]]:
    turns = [start + 2 * math.pi * number / corners for number in range(corners)]
    return [(math.cos(turn), math.sin(turn)) for turn in turns]


def _scaled(x: float, y: float, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x * px, y * py) for px, py in points]


def _star() -> list[tuple[float, float]]:
    points = _regular(10, -math.pi / 2)
    return [(x * r, y * r) for (x, y), r in zip(points, (1, 0.42) * 5, strict=True)]


def _cross() -> list[tuple[float, float]]:
    a, b = 1.0, 0.33
    quarter = [(b, -a), (b, -b), (a, -b)]
    return [
        (math.cos(t) * x - math.sin(t) * y, math.sin(t) * x + math.cos(t) * y)
        for t in (0, math.pi / 2, math.pi, 3 * math.pi / 2)
        for x, y in quarter
    ]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * number / _ROUND for number in range(_ROUND)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17,
        )
        for t in turns
    ]


def _arrow() -> list[tuple[float, float]]:
    return [
        *((-1, -0.22), (0.1, -0.22), (0.1, -0.65), (1, 0)),
        *((0.1, 0.65), (0.1, 0.22), (-1, 0.22)),
    ]


_OUTLINES: dict[str, Callable[[], list[tuple[float, float]]]] = {
    "circle": lambda: _regular(_ROUND, 0),
    "oval": lambda: _scaled(1, 0.48, _regular(_ROUND, 0)),
    "square": lambda: _scaled(1.2, 1.2, _regular(4, math.pi / 4)),
    "rectangle": lambda: [(-1, -0.45), (1, -0.45), (1, 0.45), (-1, 0.45)],
    "triangle": lambda: _regular(3, -math.pi / 2),
    "star": _star,
    "diamond": lambda: _scaled(0.66, 1, _regular(4, 0)),
    "cross": _cross,
    "heart": _heart,
    "arrow": _arrow,
}


# --- one thing ------------------------------------------------------------------------------------


def _around(
    thing: Thing, scene: Scene, rng: random.Random, size: tuple[int, int]
) -> tuple[list[tuple[float, float]], int]:
    """Return a thing's outline in pixels, and how thick a line around it is."""
    radius = thing.radius * min(size)
    corners = _turned(outline(thing.shape), thing.angle)
    if scene.style == "sketch":
        corners = _wobbly(corners, rng, closed=len(corners) < _ROUND)
    around = corners * radius + (thing.x * size[0], thing.y * size[1])
    line = max(2, round(radius * rng.uniform(0.14, 0.24)))
    return [(float(x), float(y)) for x, y in around], line


def _draw_thing(
    picture: Image.Image,
    points: list[tuple[float, float]],
    line: int,
    thing: Thing,
    scene: Scene,
    rng: random.Random,
) -> None:
    pen = ImageDraw.Draw(picture)
    rgb = tone(thing.colour, rng)
    if thing.outlined:
        pen.polygon(points, fill=None, outline=rgb, width=line)
    elif scene.style == "bordered" and thing.colour != "black":
        edge = tuple(c // 2 for c in rgb)
        pen.polygon(points, fill=rgb, outline=edge, width=max(1, line // 3))
    elif scene.style == "shaded":
        _shade(picture, points, rgb)
    else:
        pen.polygon(points, fill=rgb)


def _turned(points: Points, angle: float) -> Points:
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _wobbly(points: Points, rng: random.Random, *, closed: bool) -> Points:
    """Move points along the outline a little, as a hand would."""
    if closed:  # edges get points of their own, or only the corners would move
        after = np.roll(points, -1, axis=0)
        points = np.concatenate([points + (after - points) * part for part in (0, 0.33, 0.67)], 1)
        points = points.reshape(-1, 2)
    shaking = np.array([[rng.gauss(0, 0.025), rng.gauss(0, 0.025)] for _ in points])
    moved: Points = points + shaking
    return moved


def _shade(picture: Image.Image, points: list[tuple[float, float]], rgb: Rgb) -> None:
    """Fill with a tone that grows darker downwards."""
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).polygon(points, fill=255)
    top = min(y for _, y in points)
    bottom = max(y for _, y in points)
    rows = np.linspace(1.0, 0.72, max(2, round(bottom - top)))[:, None]
    shades = np.clip(rows * np.array(rgb), 0, 255).astype(np.uint8)[:, None]  # (H, 1, 3)
    box = (0, round(top), picture.width, round(top) + len(rows))
    layer = Image.fromarray(shades).resize((picture.width, len(rows)))
    picture.paste(layer, box[:2], mask.crop(box))


# --- the background, and what happens to pictures -------------------------------------------------


def background(scene: Scene, rng: random.Random, width: int, height: int) -> Image.Image:
    """Return a scene's background alone, width by height pixels."""
    rgb = np.array(tone(scene.background, rng), dtype=np.float64)
    if scene.fill == "plain":
        return Image.new("RGB", (width, height), tuple(int(c) for c in rgb))
    noise = np.random.default_rng(rng.getrandbits(32))
    if scene.fill == "noisy":
        grain = noise.normal(0, rng.uniform(4, 14), (height, width, 1))
        pixels = rgb + grain
    else:  # towards lighter or darker, across or down
        ramp = np.linspace(0, rng.choice((-1, 1)) * rng.uniform(20, 60), width)[None, :, None]
        if rng.random() < 0.5:
            ramp = np.linspace(0, ramp[0, -1, 0], height)[:, None, None]
        pixels = np.broadcast_to(rgb + ramp, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def compressed(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Return the picture as JPEG shows it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=rng.randint(35, 90))
    return Image.open(file).convert("RGB")
