"""`Heat`: numbers over the pictures of a conversation, and how they are drawn.

Shapes: g cells a side of a map; h, w rows and columns of a whole picture's grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Box
from gemma3vl_app.pictures import Picture
from gemma3vl_app.traces import Floats, Place

_GRID_SIDE = 448  # most rows or columns of a picture's grid
_DRAWN_SIDE = 448  # pixels of the longer side of a drawing
_FOR, _AGAINST = (255, 106, 0), (0, 122, 255)  # orange and blue: told apart by most eyes
_FULL_AT = 99.5  # percentile of the strongest cells that gets the full colour


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Heat over one picture, or over one crop of it: `cells` (g, g), row by row from the top left.

    `box` is the crop's, in pixels of the picture; None for the whole.
    """

    picture: int
    box: Box | None
    cells: Floats


@dataclass(frozen=True, eq=False, kw_only=True)
class Heat:
    """Where in the pictures something is, by one method.

    Attributes:
        method: its name. says: in a line, what it shows and what it does not.
        words: the words of the answer it is about.
        pictures: those of the conversation, in order. maps: one for each, and for each crop.
        unit: what the cells count.
    """

    method: str
    says: str
    words: str
    pictures: tuple[Picture, ...]
    maps: tuple[HeatMap, ...]
    unit: str

    @property
    def signed(self) -> bool:
        """Whether some of it speaks against the words."""
        return any((each.cells < 0).any() for each in self.maps)

    def grid(self, picture: int = 0) -> Floats:
        """Return the heat of one picture's points (h, w), its crops' maps added to its own.

        What is counted is divided by the share of the picture that a cell covers: a map's mean over
        its box is its sum, and fine maps count like coarse ones.
        """
        shown = self._picture(picture)
        scale = min(1.0, _GRID_SIDE / max(shown.width, shown.height))
        h, w = (max(1, round(side * scale)) for side in (shown.height, shown.width))
        total = np.zeros((h, w), dtype=np.float32)
        for each in self.maps:
            if each.picture == picture:
                left, top, right, bottom = each.box or (0, 0, shown.width, shown.height)
                x0, x1 = round(left * w / shown.width), round(right * w / shown.width)
                y0, y1 = round(top * h / shown.height), round(bottom * h / shown.height)
                if x1 <= x0 or y1 <= y0:
                    continue
                share = (x1 - x0) * (y1 - y0) / (w * h)
                spread = _spread(each.cells, y1 - y0, x1 - x0) * each.cells.size / share
                total[y0:y1, x0:x1] += spread
        return total

    def contrast(self, box: Box, picture: int = 0) -> float:
        """Return the mean heat inside `box` (pixels of the picture) over the mean outside.

        Heat for and against the words counts alike. Infinite where all of it is inside.
        """
        within, without = self.inside_and_outside(box, picture)
        if not within and not without:
            return 1.0  # no heat anywhere: no contrast
        return within / without if without else math.inf

    def inside_and_outside(self, box: Box, picture: int = 0) -> tuple[float, float]:
        """Return the mean heat, without its sign, inside `box` and outside of it."""
        grid, shown = np.abs(self.grid(picture)), self._picture(picture)
        h, w = grid.shape
        x0, x1 = math.floor(box[0] * w / shown.width), math.ceil(box[2] * w / shown.width)
        y0, y1 = math.floor(box[1] * h / shown.height), math.ceil(box[3] * h / shown.height)
        inside = np.zeros(grid.shape, dtype=bool)
        inside[max(0, y0) : y1, max(0, x0) : x1] = True
        if inside.all() or not inside.any():
            raise ConversationError(f"The box {box} must cover a part of the picture.")
        return float(grid[inside].mean()), float(grid[~inside].mean())

    @property
    def strongest(self) -> float:
        """The strongest cell, in `unit` and without its sign."""
        return max(float(np.abs(each.cells).max()) for each in self.maps)

    def share(self, picture: int = 0) -> float:
        """Return how much of all the heat, for and against alike, lies on one picture."""
        self._picture(picture)
        heat = [(each.picture, float(np.abs(each.cells).sum())) for each in self.maps]
        whole = sum(amount for _, amount in heat)
        return sum(amount for number, amount in heat if number == picture) / (whole or 1.0)

    def drawn(self, picture: int = 0, *, side: int = _DRAWN_SIDE) -> Image.Image:
        """Return the picture with its heat on it: orange speaks for the words, blue against.

        The same colour is the same heat in all pictures of this `Heat`.
        """
        image = self._picture(picture).rgb
        return painted(image, self.grid(picture), side=side, full=self._full)

    def drawn_crops(self, picture: int = 0, *, side: int = _DRAWN_SIDE) -> list[Image.Image]:
        """Return the whole picture and each of its crops, each with its own map alone."""
        shown = self._picture(picture)
        drawings = []
        for each in self.maps:
            if each.picture == picture:
                image = shown.rgb.crop(each.box) if each.box else shown.rgb
                share = image.width * image.height / (shown.width * shown.height)
                density = each.cells * each.cells.size / share
                drawings.append(painted(image, density, side=side, full=self._full))
        return drawings

    @cached_property
    def _full(self) -> float:
        """The heat that gets the full colour: nearly the strongest of all pictures' points."""
        points = [np.abs(self.grid(number)).ravel() for number in range(len(self.pictures))]
        return max(float(np.percentile(each, _FULL_AT)) for each in points)

    def _picture(self, picture: int) -> Picture:
        if not 0 <= picture < len(self.pictures):
            raise ConversationError(
                f"There is no picture {picture}: there are {len(self.pictures)}, numbered from 0."
            )
        return self.pictures[picture]


def painted(
    image: Image.Image, cells: Floats, *, full: float, side: int = _DRAWN_SIDE
) -> Image.Image:
    """Return an image with heat (any rows, columns) spread over it, as large as `side` at most.

    `full` is the heat that gets the full colour.
    """
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    heat = _spread(cells, small.height, small.width)
    strength = np.clip(np.abs(heat) / (full or 1.0), 0, 1)[..., None] ** 0.8
    # Half grey below, so that colours of the picture are not taken for heat.
    colours = np.asarray(small, dtype=np.float32)
    grey = np.asarray(small.convert("L"), dtype=np.float32)[..., None]
    base = 0.35 * colours + 0.65 * (0.75 * grey + 40)
    paint = np.where((heat >= 0)[..., None], _FOR, _AGAINST)
    mixed = base * (1 - 0.72 * strength) + paint * (0.72 * strength)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def square_maps(values: Sequence[Floats], places: Sequence[Place]) -> tuple[HeatMap, ...]:
    """Return one map for each place, from the heat of its soft tokens (T,), row by row."""
    maps = []
    for each, place in zip(values, places, strict=True):
        side = math.isqrt(each.size)
        maps.append(HeatMap(place.picture, place.box, each.reshape(side, side)))
    return tuple(maps)


def _spread(cells: Floats, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Return cells over a grid of so many points, each the mean of the cells it covers."""
    image = Image.fromarray(np.ascontiguousarray(cells, dtype=np.float32))
    return np.array(image.resize((columns, rows), Image.Resampling.BOX))
