"""Pictures of prints, and where in them each letter is.

Coordinates in pixels from here on, before they are turned those of the text: from its top left.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gemma3vl_app.scenes import fonts
from gemma3vl_app.scenes.drawing import Rgb, background, compressed, tone
from gemma3vl_app.scenes.fonts import Face
from gemma3vl_app.scenes.printed import (
    ABOVE,
    BELOW,
    LEAST_CONTRAST,
    SIGN,
    Matrix,
    Points,
    Print,
    brightness,
    mapped,
    onto_picture,
)
from gemma3vl_app.scenes.scene import Scene

_DIM = 0.45  # how much of the way to black or white a shadow is
_TRIES = 30


@dataclass(frozen=True)
class Letter:
    """One printed character and the box around its ink, in fractions of the picture.

    `line` is how far down the middle of a capital would be in its place: the same for all letters
    of a level line, whether they reach above or below it.
    """

    character: str
    left: float
    top: float
    right: float
    bottom: float
    line: float


def draw_print(shown: Print, rng: random.Random, *, side: int | None = None) -> Image.Image:
    """Draw a print; `side` is the shorter side in pixels, 160 to 320 without it.

    The same print, fonts and state of `rng` give the same picture.
    """
    return draw_with_letters(shown, rng, side=side)[0]


def draw_with_letters(
    shown: Print, rng: random.Random, *, side: int | None = None
) -> tuple[Image.Image, tuple[Letter, ...]]:
    """Draw a print, and say where each of its characters is, spaces left out."""
    short = side or rng.randint(160, 320)
    size = (max(short, round(short * shown.aspect)), max(short, round(short / shown.aspect)))
    text = _set(shown, short)
    onto = onto_picture(shown, size) @ _moving(-text.width / 2, -text.height / 2)
    straight = not shown.angle and not any(shown.lean)
    if straight:  # on whole pixels, so that nothing is blurred
        onto = _moving(round(onto[0, 2]), round(onto[1, 2]))
    picture, ink = _ground_and_ink(shown, rng, size, mapped(text.sign, onto))
    mask = _mask(text, size, onto, straight=straight, hard=shown.way == "hard")
    if shown.way == "shadow":
        _cast_shadow(picture, mask, ink, max(1, round(0.08 * text.capital)))
    picture.paste(ink, mask=mask)
    letters = tuple(_letter(each, onto, size) for each in text.glyphs)
    return compressed(picture, rng) if rng.random() < 0.3 else picture, letters


def write(
    picture: Image.Image, line: str, face: Face, capital: float, at: tuple[float, float], ink: Rgb
) -> list[Letter]:
    """Write a line whose baseline begins at a place in pixels; `capital` letters so many high."""
    ratio = fonts.capital(face)
    font = fonts.font(face, max(1, round(capital / ratio)))
    pen, letters = ImageDraw.Draw(picture), []
    for each in fonts.lay_out(face, line)[0]:
        x, y = at[0] + each.start * capital, round(at[1])
        pen.text((x, y), each.character, fill=ink, font=font, anchor="ls")
        left, right = at[0] + each.left * capital, at[0] + each.right * capital
        top, bottom = y + each.top * capital, y + each.bottom * capital
        wide, high = picture.size
        box = left / wide, top / high, right / wide, bottom / high
        letters.append(Letter(each.character, *box, (y - capital / 2) / high))
    return letters


# --- setting the text -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """Text that is set, in pixels from its top left: `width` and `height` are without a sign."""

    glyphs: tuple[_Glyph, ...]
    font: ImageFont.FreeTypeFont
    capital: float
    width: float
    height: float

    @property
    def sign(self) -> Points:
        """The corners of a sign behind it."""
        low = -SIGN * self.capital
        right, bottom = self.width - low, self.height - low
        return np.array([(low, low), (right, low), (right, bottom), (low, bottom)])


@dataclass(frozen=True)
class _Glyph:
    character: str
    x: float
    y: float
    box: Points  # the corners around its ink
    middle: Points  # (2,): of its ink across, of a capital down


def _set(shown: Print, short: int) -> _Text:
    ratio = fonts.capital(shown.face)
    font = fonts.font(shown.face, max(1, round(shown.size * short / ratio)))
    capital = font.size * ratio
    lines = [fonts.lay_out(shown.face, line) for line in shown.lines]
    widest = max(width for _, width in lines)
    room = {"left": 0.0, "center": 0.5, "right": 1.0}[shown.align]
    glyphs = []
    for number, (line, width) in enumerate(lines):
        x, y = (widest - width) * room, ABOVE + number * shown.spacing
        for each in line:
            corners = [(each.left, each.top), (each.right, each.top)]
            corners += [(each.right, each.bottom), (each.left, each.bottom)]
            box = (np.array(corners) + np.array((x, y))) * capital
            middle = np.array((x + (each.left + each.right) / 2, y - 0.5)) * capital
            start = (x + each.start) * capital
            glyphs.append(_Glyph(each.character, start, y * capital, box, middle))
    height = (len(lines) - 1) * shown.spacing + ABOVE + BELOW
    return _Text(tuple(glyphs), font, capital, widest * capital, height * capital)


def _moving(across: float, down: float) -> Matrix:
    return np.array([[1, 0, across], [0, 1, down], [0, 0, 1]], dtype=np.float64)


def _letter(glyph: _Glyph, onto: Matrix, size: tuple[int, int]) -> Letter:
    around = mapped(glyph.box, onto) / np.array(size)
    (left, top), (right, bottom) = around.min(axis=0), around.max(axis=0)
    line = mapped(glyph.middle[None], onto)[0, 1] / size[1]
    return Letter(glyph.character, float(left), float(top), float(right), float(bottom), line)


def _mask(
    text: _Text, size: tuple[int, int], onto: Matrix, *, straight: bool, hard: bool
) -> Image.Image:
    """Return a mask of mode L in the picture's size, 255 where there is ink."""
    pad = round(text.capital)  # more than any letter reaches out of its line
    flat = Image.new("L", (round(text.width) + 2 * pad, round(text.height) + 2 * pad))
    pen = ImageDraw.Draw(flat)
    pen.fontmode = "1" if hard else "L"
    for each in text.glyphs:
        x = round(each.x) if hard else each.x
        at = (x + pad, round(each.y) + pad)
        pen.text(at, each.character, fill=255, font=text.font, anchor="ls")
    if straight:
        mask = Image.new("L", size)
        mask.paste(flat, (round(onto[0, 2]) - pad, round(onto[1, 2]) - pad))
        return mask
    back = np.linalg.inv(onto @ _moving(-pad, -pad))
    data = tuple(float(number) for number in (back / back[2, 2]).ravel()[:8])
    return flat.transform(size, Image.Transform.PERSPECTIVE, data, Image.Resampling.BICUBIC)


# --- colours --------------------------------------------------------------------------------------


def _ground_and_ink(
    shown: Print, rng: random.Random, size: tuple[int, int], sign: Points
) -> tuple[Image.Image, Rgb]:
    """Draw what is behind the text and a tone for the text, until they are far enough apart."""
    drawn: list[tuple[float, Image.Image, Rgb]] = []
    while not drawn or (drawn[-1][0] <= LEAST_CONTRAST and len(drawn) < _TRIES):
        fill = shown.fill if len(drawn) < _TRIES / 2 else "plain"
        picture = background(Scene((), shown.surround, fill, "plain", 1.0), rng, *size)
        if shown.way == "sign":
            rgb = tone(shown.background, rng)
            ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in sign], fill=rgb)
            low = high = brightness(rgb)
        else:
            low, high = _brightest(picture)
        ink = tone(shown.colour, rng)
        drawn.append((max(low - brightness(ink), brightness(ink) - high), picture, ink))
    _, picture, ink = max(drawn, key=lambda each: each[0])
    return picture, ink


def _brightest(picture: Image.Image) -> tuple[float, float]:
    """Return how dark and how bright it is at most, grain evened out."""
    levels = np.asarray(picture.reduce(8).convert("L"))
    return float(levels.min()), float(levels.max())


def _cast_shadow(picture: Image.Image, mask: Image.Image, ink: Rgb, by: int) -> None:
    """Draw a shadow to the lower right: darker behind bright text, brighter behind dark text."""
    dark = brightness(ink) > _brightest(picture)[0]
    shade = Image.new("RGB", picture.size, "black" if dark else "white")
    moved = Image.new("L", mask.size)
    moved.paste(mask, (by, by))
    picture.paste(Image.blend(picture, shade, _DIM), mask=moved)
