"""Pages of several prints under each other, for the tower to learn to read from.

Text covers a small part of a print, and its letters would be a small part of what is computed for
it. A page has three times as many, as large as they are in prints.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from PIL import Image

from gemma3vl_app.scenes import print_drawing
from gemma3vl_app.scenes.print_drawing import Letter
from gemma3vl_app.scenes.printed import random_print

_MARGIN = 4, 14  # pixels above and below the letters of a print, if nothing else
_MOST_UNFIT = 2  # prints that do not fit any more


@dataclass(frozen=True)
class _Band:
    """The rows from `top` to `bottom`, in pixels, of a square picture of a print."""

    picture: Image.Image
    letters: tuple[Letter, ...]
    top: int
    bottom: int

    @property
    def height(self) -> int:
        return self.bottom - self.top


def draw_page(rng: random.Random, side: int) -> tuple[Image.Image, tuple[Letter, ...]]:
    """Draw a square picture of prints under each other, and say where each character is.

    Raises:
        TrainingError: too few fonts are installed.
    """
    bands = [_band(rng, side)]
    unfit = 0
    while unfit < _MOST_UNFIT:
        band = _band(rng, side)
        if sum(each.height for each in (*bands, band)) <= side:
            bands.append(band)
        else:
            unfit += 1
    left = side - sum(each.height for each in bands)
    grown = rng.randrange(len(bands))
    bands[grown] = _higher(bands[grown], left, rng)
    page, letters, y = Image.new("RGB", (side, side)), [], 0
    for band in bands:
        page.paste(band.picture.crop((0, band.top, side, band.bottom)), (0, y))
        letters += [_moved(each, (y - band.top) / side) for each in band.letters]
        y += band.height
    return page, tuple(letters)


def _band(rng: random.Random, side: int) -> _Band:
    """Draw a print, and keep the rows in which there are letters and a few more."""
    drawn, letters = print_drawing.draw_with_letters(random_print(rng), rng)
    top = min(each.top for each in letters) * side - rng.randint(*_MARGIN)
    bottom = max(each.bottom for each in letters) * side + rng.randint(*_MARGIN)
    square = drawn.resize((side, side), Image.Resampling.BILINEAR)
    return _Band(square, letters, max(0, int(top)), min(side, int(bottom)))


def _higher(band: _Band, by: int, rng: random.Random) -> _Band:
    """Add so many rows of its picture to a band."""
    below = band.picture.height - band.bottom
    above = rng.randint(max(0, by - below), min(by, band.top))
    return replace(band, top=band.top - above, bottom=band.bottom + by - above)


def _moved(letter: Letter, down: float) -> Letter:
    return replace(
        letter, top=letter.top + down, bottom=letter.bottom + down, line=letter.line + down
    )
