"""What the demo's vision tower is shown while it is trained, and what it is to say of it.

A soft token of the demo stands for one cell of the picture. Labels say for each cell whether a
thing has its centre there, what it is, and which characters begin there; for each patch which parts
of it are covered, and of what they are a part. Shapes: N pictures, C cells, P patches.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from gemma3vl_app.finetune import charts
from gemma3vl_app.finetune.pages import draw_page
from gemma3vl_app.scenes import print_drawing
from gemma3vl_app.scenes.drawing import draw_with_mask
from gemma3vl_app.scenes.fonts import CHARACTERS
from gemma3vl_app.scenes.print_drawing import Letter
from gemma3vl_app.scenes.printed import random_characters, random_print
from gemma3vl_app.scenes.scene import COLOURS, PLACES, SHAPES, SIZES, Scene, random_scene

HEADS = {
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "size": len(SIZES),
    "outlined": 2,
    "place": len(PLACES),
}
NOTHING = -1  # the label of a cell in which no thing has its centre, or no character
CELL_CHARACTERS, PATCH_CHARACTERS = 6, 2  # that are labelled, in reading order
FINE = 4  # parts a side of a patch
_INSIDE = 0.8  # of a thing's radius: patches so near its centre are taken for a part of it
_NEAR = 0.3  # of a cell: centres so near its border may be taken for the neighbour's
_NEAR_LETTER = 0.15  # of a cell: the same of characters, to the left and right

Kind = Literal["scene", "print", "chart", "page"]
Kinds = tuple[tuple[Kind, float], ...]  # with their shares
SCENES_ONLY: Kinds = (("scene", 1.0),)
Pixels = npt.NDArray[np.uint8]  # (N, side, side, 3)
Labels = npt.NDArray[np.int8]
Arrays = tuple[npt.NDArray[Any], ...]  # the fields of `Drawn`, in their order


@dataclass(frozen=True)
class Drawn:
    """Pictures, and what their cells and patches are to say.

    `cells` (N, C, heads) in the order of `HEADS`; `neighbours` (N, C, 2), -1, 0 or 1 down and
    across: next to which cells a thing's centre lies, see `neighbours_of`; `patches` (N, P, 2),
    shape and colour; `masks` (N, P, fine * fine), how much of each part of a patch is covered, 0 to
    255; `cell_characters` (N, C, 6) and `patch_characters` (N, P, 2), numbers in `CHARACTERS`;
    `border_characters` (N, C), one near each cell's left border that the cell may leave to the one
    before it, and that is not among `cell_characters`.
    """

    pixels: torch.Tensor  # (N, side, side, 3), uint8
    cells: torch.Tensor  # this and the others int8, but for the masks
    neighbours: torch.Tensor
    patches: torch.Tensor
    masks: torch.Tensor  # uint8
    cell_characters: torch.Tensor
    border_characters: torch.Tensor
    patch_characters: torch.Tensor

    def __getitem__(self, chosen: torch.Tensor | slice) -> Drawn:
        return Drawn(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @staticmethod
    def of(arrays: Arrays) -> Drawn:
        """Return pictures as tensors."""
        return Drawn(*map(torch.from_numpy, arrays))


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: what is drawn, and how long and how fast is learned from it."""

    name: str
    side: int  # pixels
    single: bool  # one thing, or a few characters, that fill much of the picture
    pictures: int
    batch: int
    steps: int
    learning_rate: float
    seed: int
    heads: tuple[str, ...] = tuple(HEADS)
    black: bool = False  # on white: shapes alone
    kinds: Kinds = SCENES_ONLY
    places: bool = False  # positions are put in at its beginning
    at_first: float = 1.0  # share of the pictures that are drawn before learning begins
    fall: float = 0.35  # share of the steps, at their end, in which the learning rate falls
    heads_alone: int = 0  # steps at its beginning in which the tower stays as it is: for new heads

    def available(self, step: int) -> int:
        """Return how many pictures are learned from at a step; all from halfway on."""
        share = self.at_first + (1 - self.at_first) * min(1.0, 2 * step / self.steps)
        return round(self.pictures * share)


# --- drawing --------------------------------------------------------------------------------------


def draw_pictures(
    stage: Stage, count: int, seed: str, *, patches_a_side: int, cells_a_side: int
) -> Arrays:
    """Draw pictures for a stage; the same ones for a seed every time."""
    rng = random.Random(seed)
    drawn = [_draw_one(stage, rng, patches_a_side, cells_a_side) for _ in range(count)]
    return tuple(np.stack(column) for column in zip(*drawn, strict=True))


def drawn_kind(kinds: Kinds, rng: random.Random) -> Kind:
    """Draw a kind of picture; nothing is drawn from `rng` where there is one kind only."""
    if len(kinds) == 1:
        return kinds[0][0]
    return rng.choices([kind for kind, _ in kinds], weights=[share for _, share in kinds])[0]


def _draw_one(
    stage: Stage, rng: random.Random, patches_a_side: int, cells_a_side: int
) -> tuple[npt.NDArray[Any], ...]:
    """Draw one picture; returns the fields of `Drawn`, without N."""
    letters: tuple[Letter, ...] = ()
    side = stage.side if stage.single else None
    kind = drawn_kind(stage.kinds, rng)
    cells = np.full((cells_a_side**2, len(HEADS)), NOTHING, dtype=np.int8)
    neighbours = np.zeros((cells_a_side**2, 2), dtype=np.int8)
    if kind == "scene":
        scene = (
            random_scene(rng, count=1, scale=1.9, black=stage.black)
            if stage.single
            else random_scene(rng)
        )
        picture, mask = draw_with_mask(scene, rng, side=side)
        cells, patches = labels_of(scene, cells_a_side), parts_of(scene, patches_a_side)
        neighbours = neighbours_of(scene, cells_a_side)
    elif kind in ("print", "page"):
        if kind == "page":
            picture, letters = draw_page(rng, stage.side)
        else:
            shown = random_characters(rng) if stage.single else random_print(rng)
            picture, letters = print_drawing.draw_with_letters(shown, rng, side=side)
        mask = _boxes([(e.left, e.top, e.right, e.bottom) for e in letters], picture.size)
        patches = np.full((patches_a_side**2, 2), NOTHING, dtype=np.int8)
    else:
        chart = charts.random_chart(rng)
        picture, letters = charts.draw_with_letters(chart, rng)
        boxes = _bars(chart)
        mask = _boxes([box for box, _ in boxes], picture.size)
        patches = _bar_parts(boxes, patches_a_side)
    small = picture.resize((stage.side, stage.side), Image.Resampling.BILINEAR)
    return (
        np.asarray(small),
        cells,
        neighbours,
        patches,
        fine_mask(mask, patches_a_side),
        *claimable_characters(letters, cells_a_side),
        characters_of(letters, patches_a_side, PATCH_CHARACTERS),
    )


# --- labels ---------------------------------------------------------------------------------------


def labels_of(scene: Scene, cells_a_side: int) -> Labels:
    """Return what each cell is to say, in the order of `HEADS`; (C, heads)."""
    labels = np.full((cells_a_side, cells_a_side, len(HEADS)), NOTHING, dtype=np.int8)
    for thing in scene.things:
        row, column = int(thing.y * cells_a_side), int(thing.x * cells_a_side)
        labels[row, column] = (
            SHAPES.index(thing.shape),
            COLOURS.index(thing.colour),
            SIZES.index(thing.size),
            thing.outlined,
            PLACES.index(thing.place),
        )
    return labels.reshape(-1, len(HEADS))


def neighbours_of(scene: Scene, cells_a_side: int) -> Labels:
    """Return for each cell whether the centre it holds lies near the one above or below (-1, 1).

    And near the one to its left or right; (C, 2). Zeros for cells that hold none, and outwards.
    """
    near = np.zeros((cells_a_side, cells_a_side, 2), dtype=np.int8)
    for thing in scene.things:
        row, column = int(thing.y * cells_a_side), int(thing.x * cells_a_side)
        near[row, column] = _next_to(thing.y, cells_a_side), _next_to(thing.x, cells_a_side)
    return near.reshape(-1, 2)


def _next_to(position: float, cells_a_side: int) -> int:
    cell, within = divmod(position * cells_a_side, 1)
    if within < _NEAR and cell > 0:
        return -1
    return 1 if within > 1 - _NEAR and cell < cells_a_side - 1 else 0


def parts_of(scene: Scene, patches_a_side: int) -> Labels:
    """Return shape and colour of what each patch lies well inside of; (P, 2)."""
    labels = np.full((patches_a_side, patches_a_side, 2), NOTHING, dtype=np.int8)
    middles = (np.arange(patches_a_side) + 0.5) / patches_a_side
    for thing in scene.things:
        across = (middles[None, :] - thing.x) * max(1.0, scene.aspect)
        down = (middles[:, None] - thing.y) / min(1.0, scene.aspect)
        inside = across**2 + down**2 < (_INSIDE * thing.radius) ** 2
        labels[inside] = SHAPES.index(thing.shape), COLOURS.index(thing.colour)
    return labels.reshape(-1, 2)


def characters_of(letters: Iterable[Letter], parts_a_side: int, most: int) -> Labels:
    """Return the characters that have their middle in each part of a picture; (parts, most)."""
    labels = np.full((parts_a_side**2, most), NOTHING, dtype=np.int8)
    for part, found in _by_part(letters, parts_a_side).items():
        numbers = [CHARACTERS.index(each.character) for _, each in found][:most]
        labels[part, : len(numbers)] = numbers
    return labels


def claimable_characters(letters: Iterable[Letter], cells_a_side: int) -> tuple[Labels, Labels]:
    """Return the characters of each cell that are its own, (C, 6), and those on borders, (C,).

    No picture shows on which side of a border a letter's middle lies that is within a pixel of it.
    So one character near a cell's left border is the cell's first or the last of the one before,
    where it stands after all characters of that and before all of this one.
    """
    cells = _by_part(letters, cells_a_side)
    border = np.full(cells_a_side**2, NOTHING, dtype=np.int8)
    own = {cell: [each for _, each in found] for cell, found in cells.items()}
    for cell in range(cells_a_side**2):
        column = cell % cells_a_side
        before, here = cells.get(cell - 1, []), cells.get(cell, [])
        if column == 0 or (before and here and before[-1][0] > here[0][0]):
            continue  # of two lines: what would be put in front of one belongs to the other
        near = [
            (abs(_across(each) * cells_a_side - column), each)
            for _, each in (*before[-1:], *here[:1])
        ]
        away, chosen = min(near, key=lambda pair: pair[0], default=(1.0, None))
        if chosen is not None and away < _NEAR_LETTER:
            border[cell] = CHARACTERS.index(chosen.character)
            for side in (cell - 1, cell):
                own[side] = [each for each in own.get(side, []) if each is not chosen]
    labels = np.full((cells_a_side**2, CELL_CHARACTERS), NOTHING, dtype=np.int8)
    for cell, kept in own.items():
        numbers = [CHARACTERS.index(each.character) for each in kept][:CELL_CHARACTERS]
        labels[cell, : len(numbers)] = numbers
    return labels, border


def _by_part(letters: Iterable[Letter], parts_a_side: int) -> dict[int, list[tuple[int, Letter]]]:
    """Return the letters of each part that has any, with their numbers in reading order."""
    found: dict[int, list[tuple[int, Letter]]] = {}
    for number, each in enumerate(letters):
        column, row = int(_across(each) * parts_a_side), int(each.line * parts_a_side)
        if 0 <= column < parts_a_side and 0 <= row < parts_a_side:
            found.setdefault(row * parts_a_side + column, []).append((number, each))
    return found


def _across(letter: Letter) -> float:
    return (letter.left + letter.right) / 2


Box = tuple[float, float, float, float]  # left, top, right, bottom in fractions of the picture


def _bars(chart: charts.Chart) -> list[tuple[Box, str]]:
    """Return where each bar is, in fractions of the picture, and its colour."""
    wide, high = max(1.0, chart.aspect), max(1.0, 1 / chart.aspect)
    return [
        ((left / wide, top / high, right / wide, bottom / high), bar.colour)
        for bar, (left, top, right, bottom) in zip(chart.bars, charts.bar_boxes(chart), strict=True)
    ]


def _bar_parts(boxes: Iterable[tuple[Box, str]], patches_a_side: int) -> Labels:
    """Return for patches whose middle lies in a bar that they are a part of one; (P, 2)."""
    labels = np.full((patches_a_side, patches_a_side, 2), NOTHING, dtype=np.int8)
    middles = (np.arange(patches_a_side) + 0.5) / patches_a_side
    for (left, top, right, bottom), colour in boxes:
        rows, columns = (middles > top) & (middles < bottom), (middles > left) & (middles < right)
        labels[np.ix_(rows, columns)] = SHAPES.index("rectangle"), COLOURS.index(colour)
    return labels.reshape(-1, 2)


def _boxes(boxes: Iterable[Box], size: tuple[int, int]) -> Image.Image:
    """Return a mask of mode L, 255 within boxes."""
    mask = Image.new("L", size)
    for left, top, right, bottom in boxes:
        corners = (left * size[0], top * size[1], right * size[0], bottom * size[1])
        ImageDraw.Draw(mask).rectangle(corners, fill=255)
    return mask


def fine_mask(mask: Image.Image, patches_a_side: int) -> npt.NDArray[np.uint8]:
    """Return how much of each part of each patch is covered, 0 to 255; (P, fine * fine)."""
    side = patches_a_side * FINE
    parts = np.asarray(mask.resize((side, side), Image.Resampling.BOX))
    grid = parts.reshape(patches_a_side, FINE, patches_a_side, FINE).transpose(0, 2, 1, 3)
    return grid.reshape(-1, FINE * FINE)


# --- mirrored pictures ----------------------------------------------------------------------------


def flipped(drawn: Drawn, rng: np.random.Generator) -> Drawn:
    """Mirror half of the pictures without text from left to right, and what is said about them."""
    chosen = torch.from_numpy(rng.random(len(drawn.pixels)) < 0.5).to(drawn.pixels.device)
    chosen &= (drawn.patch_characters == NOTHING).all(2).all(1)

    def where_chosen(mirrored: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return torch.where(chosen.view(-1, *[1] * (kept.ndim - 1)), mirrored, kept)

    cells, neighbours = _mirrored(drawn.cells), _mirrored(drawn.neighbours)
    place = cells[..., -1]
    cells[..., -1] = torch.where(place == NOTHING, NOTHING, place // 3 * 3 + 2 - place % 3)
    neighbours[..., 1] *= -1
    fine = _mirrored(drawn.masks)
    fine = fine.view(*fine.shape[:2], FINE, FINE).flip(3).view(fine.shape)
    return Drawn(
        where_chosen(drawn.pixels.flip(2), drawn.pixels),
        where_chosen(cells, drawn.cells),
        where_chosen(neighbours, drawn.neighbours),
        where_chosen(_mirrored(drawn.patches), drawn.patches),
        where_chosen(fine, drawn.masks),
        drawn.cell_characters,
        drawn.border_characters,
        drawn.patch_characters,
    )


def _mirrored(labels: torch.Tensor) -> torch.Tensor:
    side = math.isqrt(labels.shape[1])
    grid = labels.view(-1, side, side, labels.shape[-1])
    return grid.flip(2).view(labels.shape)
