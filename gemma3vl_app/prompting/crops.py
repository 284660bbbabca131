"""Pan-and-scan: where a long picture is cut into crops that the model sees beside the whole.

Pure geometry; knows nothing of pixels. The boxes equal those of transformers' Gemma 3 processor.
"""

from __future__ import annotations

import math
from typing import Literal

from gemma3vl_app.generation import Box
from gemma3vl_app.prompting.format import PromptFormat

# "auto" crops only where at least half as much detail again becomes visible along the long side.
AUTO_MIN_GAIN = 1.5


def crop_boxes(
    width: int, height: int, mode: Literal["off", "on", "auto"], format: PromptFormat
) -> tuple[Box, ...]:
    """Return the crops of a `width` x `height` picture, in reading order; none when it stays whole.

    `on` is the reference's pan-and-scan: it cuts the long side only, and only from an aspect ratio
    of `format.min_crop_ratio` on. `auto` does so where it shows markedly more: the whole picture is
    squashed to S = `format.image_size` pixels a side, so of a long side L it shows min(L, S), and n
    crops show min(L, n S); `auto` crops when the second is at least 1.5 times the first. A 1920 x
    1080 screenshot or a scanned page is cropped, a 1280 x 720 one is not: its crops would cost two
    more pictures for little.
    """
    if mode == "off" or format.image_tokens == 0:
        return ()
    long_side, short_side = max(width, height), min(width, height)
    count = _count(long_side, short_side, format)
    if count == 0 or (mode == "auto" and _gain(long_side, count, format) < AUTO_MIN_GAIN):
        return ()
    step = math.ceil(long_side / count)
    cuts = [(start, min(start + step, long_side)) for start in range(0, long_side, step)]
    if width >= height:
        return tuple((start, 0, stop, height) for start, stop in cuts)
    return tuple((0, start, width, stop) for start, stop in cuts)


def _count(long_side: int, short_side: int, format: PromptFormat) -> int:
    """Return the number of crops as `Gemma3ImageProcessorPil.pan_and_scan` does; 0 for none."""
    ratio = long_side / short_side
    if ratio < format.min_crop_ratio:
        return 0
    count = min(math.floor(ratio + 0.5), long_side // format.min_crop_size)  # near-square crops
    count = min(max(2, count), format.max_crops)
    if min(math.ceil(long_side / count), short_side) < format.min_crop_size:
        return 0
    return count


def _gain(long_side: int, count: int, format: PromptFormat) -> float:
    visible_whole = min(long_side, format.image_size)
    visible_cropped = min(long_side, count * format.image_size)
    return visible_cropped / visible_whole
