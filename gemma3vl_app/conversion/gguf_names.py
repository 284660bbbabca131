"""What llama.cpp calls Gemma 3's weights: the names that `loading` reads, the other way round.

Language model and vision tower lie in a file each. llama.cpp multiplies by a norm's weight as it is
stored; Gemma's own norms multiply by 1 + w, so 1 + w is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gemma3vl_app.conversion.layouts import SAME, Layout, Shape
from gemma3vl_app.conversion.names import MEMORY_TEXT, MEMORY_TEXT_ONLY, NameTable, Row
from gemma3vl_app.loading import gguf_text, gguf_vision


@dataclass(frozen=True)
class PlusOne:
    """A norm's weight w as 1 + w, in fp32: all of a bf16 weight but what is below 1e-7."""

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the only shape."""
        return shapes[0]

    def join(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return 1 + w."""
        return weights[0].float() + 1

    def split(self, whole: torch.Tensor, shapes: Sequence[Shape], index: int) -> torch.Tensor:
        """Return w."""
        return whole - 1


PLUS_ONE = PlusOne()


def _layout(name: str) -> Layout:
    return PLUS_ONE if name.endswith("norm.weight") else SAME


def _text_rows(prefix: str) -> tuple[Row, ...]:
    """Return rows for the language model; `prefix` is what stands before its names in memory."""
    outer = ((theirs, ours) for theirs, ours in gguf_text.OUTER_NAMES.items())
    layers = (
        (f"blk.{{layer}}.{theirs}.weight", f"model.layers.{{layer}}.{ours}.weight")
        for theirs, ours in gguf_text.LAYER_NAMES.items()
    )
    return tuple(
        Row((prefix + ours.removeprefix("model."),), theirs, _layout(ours))
        for theirs, ours in (*outer, *layers)
    )


def _vision_rows() -> tuple[Row, ...]:
    layers = (
        Row(
            (f"{gguf_vision.TOWER}encoder.layers.{{layer}}.{ours}.{{part}}",),
            f"v.blk.{{layer}}.{theirs}.{{part}}",
        )
        for theirs, ours in gguf_vision.LAYER_NAMES.items()
    )
    outer = (
        Row((ours,), theirs, PLUS_ONE if ours == gguf_vision.SOFT_NORM else SAME)
        for theirs, ours in gguf_vision.OUTER_NAMES.items()
    )
    return (*outer, *layers)


GGUF_TEXT = NameTable(
    "llama.cpp's names of a language model",
    (*_text_rows(MEMORY_TEXT), *_text_rows(MEMORY_TEXT_ONLY)),
)
GGUF_VISION = NameTable("llama.cpp's names of a vision tower", _vision_rows())
