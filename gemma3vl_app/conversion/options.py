"""What a conversion can be told, whatever the format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["stored", "bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("stored", "bf16", "fp32")
SHARD_BYTES = 2 << 30  # unless another size is asked for
GgufType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
GGUF_TYPES: tuple[GgufType, ...] = ("f32", "f16", "bf16", "q8_0", "q4_0")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Wishes about what is written.

    `precision` rounds all weights (a format that has numbers of its own may refuse it);
    `shard_bytes` is how large a file may get, where one weight is not larger (None: nothing was
    said); `gguf_type` is how a GGUF file stores the language model's matrices.
    """

    precision: Precision = "stored"
    shard_bytes: int | None = None
    gguf_type: GgufType = "bf16"

    @property
    def largest_file_bytes(self) -> int:
        """How large a file may get, of a format that has shards."""
        return SHARD_BYTES if self.shard_bytes is None else self.shard_bytes
