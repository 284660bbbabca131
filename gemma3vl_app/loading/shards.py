"""Placeholder until the real module is written: reads safetensors headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16, "U8": torch.uint8, "I8": torch.int8}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, not read yet."""

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of values."""
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """Return it, memory-mapped."""
        with safe_open(self.file, "pt") as file:
            return file.get_tensor(self.key)


def read_headers(files: Sequence[Path], name: str) -> dict[str, StoredTensor]:
    """Return every tensor of the files by its key."""
    found = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for key in file.keys():
                part = file.get_slice(key)
                found[key] = StoredTensor(path, key, _DTYPES[part.get_dtype()], tuple(part.get_shape()))
    return found
