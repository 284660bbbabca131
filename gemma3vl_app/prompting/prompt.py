"""The prepared prompt: token ids, and which of them stand for which picture.

Plain values; knows nothing of how they were made. Shapes: L is the prompt's length in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gemma3vl_app.generation import Box
from gemma3vl_app.pictures import Picture

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageInput:
    """A picture, or one crop of it, at its place: the placeholder tokens `start` to `stop` - 1.

    `key` is a digest of everything that decides its pixels; equal keys mean equal image features.
    """

    key: bytes
    picture: Picture
    box: Box | None
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class PromptKey:
    """What decides whether two prompts begin alike; holds no pixels, so it may be kept for long.

    Attributes:
        ids: token ids, int64 (L,).
        places: start, stop and key of every picture or crop.
    """

    ids: Ids
    places: tuple[tuple[int, int, bytes], ...]


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """What the engine computes on; made by `prepare`, read-only.

    Attributes:
        ids: token ids, int64 (L,).
        images: pictures and crops in the order of their places.
        crops: per picture of the conversation, in order, the boxes cut from it.
        answer_start: index in `ids` where the open answer begins; tokens from there on are its
        start.
    """

    ids: Ids
    images: tuple[ImageInput, ...] = ()
    crops: tuple[tuple[Box, ...], ...] = ()
    answer_start: int = 0

    def __post_init__(self) -> None:
        self.ids.setflags(write=False)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def token_types(self) -> Ids:
        """1 where a token stands for a part of a picture, else 0; int64 (L,)."""
        types = np.zeros(len(self.ids), dtype=np.int64)
        for start, stop in self.image_spans:
            types[start:stop] = 1
        types.setflags(write=False)
        return types

    @cached_property
    def key(self) -> PromptKey:
        """The ids and the pictures' places and keys."""
        places = tuple((image.start, image.stop, image.key) for image in self.images)
        return PromptKey(self.ids, places)

    @property
    def image_tokens(self) -> int:
        """How many tokens stand for pictures."""
        return sum(stop - start for start, stop in self.image_spans)

    @property
    def image_spans(self) -> tuple[tuple[int, int], ...]:
        """Start and stop of every picture's or crop's placeholder tokens."""
        return tuple((image.start, image.stop) for image in self.images)

    @property
    def image_keys(self) -> tuple[bytes, ...]:
        """The key of every picture or crop, in order."""
        return tuple(image.key for image in self.images)


def extended(prompt: PreparedPrompt, more_ids: Sequence[int] | Ids) -> PreparedPrompt:
    """Return `prompt` with generated ids after it; its pictures stay where they are."""
    more = np.asarray(more_ids, dtype=np.int64)
    return replace(prompt, ids=np.concatenate([prompt.ids, more]))


def beginning(prompt: PreparedPrompt, length: int) -> PreparedPrompt:
    """Return the first `length` tokens of `prompt`, with the pictures that end among them."""
    images = tuple(image for image in prompt.images if image.stop <= length)
    start = min(prompt.answer_start, length)
    return replace(prompt, ids=prompt.ids[:length], images=images, answer_start=start)


def common_prefix(a: PromptKey, b: PromptKey) -> int:
    """Return how many leading tokens `a` and `b` share, pictures compared by key.

    Never ends inside a picture: it falls back to the picture's first token.
    """
    length = min(len(a.ids), len(b.ids))
    differs = a.ids[:length] != b.ids[:length]
    first = int(differs.argmax()) if length else 0
    if length and differs[first]:
        length = first
    for index, place in enumerate(a.places):
        start, stop, _ = place
        if start >= length:
            break
        other = b.places[index] if index < len(b.places) else None
        if other != place or stop > length:
            return start
    return length
