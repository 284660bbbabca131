"""Where very tall pages are cut into parts: between lines of text, each row in exactly one part.

A page as tall as a long screenshot would be squashed, even in crops, until nobody can read it.
Knows pixels; knows nothing of prompts. Shapes: H rows, W columns.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gemma3vl_app.pictures import Picture, PictureLimits

TALL = 4  # heights in widths: as many crops as the model takes, one above the other, are square
PART = 2  # the height, in widths, that a part shall have at most: it is seen in two square crops
MOST_PARTS = 64  # about: what is a few pixels wide is no page
INK = 32  # levels of 255 by which ink differs from its background; less is noise of a JPEG
_LIMITS = PictureLimits(max_bytes=1 << 28)  # a part of an accepted page is accepted


def split_page(page: Picture) -> tuple[Picture, ...]:
    """Return the parts of a very tall page from top to bottom, or the page itself.

    Only pages taller than `TALL` times their width are cut. Parts are named like "a.png, part 2 of
    3" and cover the page without overlap; those with nothing on them are left out.
    """
    if page.height <= TALL * page.width:
        return (page,)
    rgb = page.rgb
    gray = np.asarray(rgb.convert("L"))
    edges = [0, *cut_rows(gray), page.height]
    parts = [
        (top, bottom) for top, bottom in pairwise(edges) if _shows_something(gray, top, bottom)
    ]
    return tuple(
        Picture.open(
            rgb.crop((0, top, page.width, bottom)),
            name=f"{page.name}, part {number} of {len(parts)}",
            crops=page.crops,
            limits=_LIMITS,
        )
        for number, (top, bottom) in enumerate(parts, start=1)
    ) or (page,)


def cut_rows(gray: NDArray[np.uint8]) -> list[int]:
    """Return the rows before which a page of gray levels (H, W) is cut, ascending.

    Each is the middle of the widest gap in a part's lower half. Where that half has none, the part
    may become up to twice as tall; where there is still none, as in a photo, the row with the least
    ink is taken.
    """
    height, width = gray.shape
    part = max(PART * width, height // MOST_PARTS)
    rows: list[int] = []
    top = 0
    while height - top > part:
        half, end = top + part // 2, top + part
        row = _widest_gap(gray, half, end)
        if row is None:
            row = _widest_gap(gray, end, min(end + part, height))
        if row is None:
            row = half + int(ink_by_row(gray, half, end).argmin())
        rows.append(row)
        top = row
    return rows


def ink_by_row(gray: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.int64]:
    """Return, for rows `start` to `stop`, how many pixels of each are ink.

    Ink differs from what its column mostly shows there, so that borders and rules from top to
    bottom are none. A row of one level throughout has none either, whatever its column shows.
    """
    rows = gray[start:stop].astype(np.int16)  # (rows, W)
    background = np.median(rows, axis=0)
    ink = (np.abs(rows - background) > INK).sum(axis=1)
    plain = rows.max(axis=1) - rows.min(axis=1) <= INK
    return np.where(plain, 0, ink)


def _widest_gap(gray: NDArray[np.uint8], start: int, stop: int) -> int | None:
    """Return the middle of the longest run of rows without ink; None where every row has some."""
    quiet = ink_by_row(gray, start, stop) == 0
    edges = np.flatnonzero(np.diff(np.concatenate(([0], quiet, [0]))))
    runs = edges.reshape(-1, 2)  # each (its first row, the one after its last)
    if not len(runs):
        return None
    first, after = runs[(runs[:, 1] - runs[:, 0]).argmax()]
    return start + int(first + after) // 2


def _shows_something(gray: NDArray[np.uint8], top: int, bottom: int) -> bool:
    return bool(int(gray[top:bottom].max()) - int(gray[top:bottom].min()) > INK)
