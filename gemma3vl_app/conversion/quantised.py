"""Matrices that a checkpoint stores in 4 bits, read as numbers; bitsandbytes' own stored form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gemma3vl_app.conversion.layouts import Shape, size_bytes
from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading import nf4
from gemma3vl_app.loading.conversion import Stored, is_nf4, parts_of

STATE = ".quant_state.bitsandbytes__"  # and "nf4" or "fp4": JSON about the matrix, as bytes


@dataclass(frozen=True)
class Dequantised:
    """A matrix (N, K) that is stored in 4 bits; `parts` by what follows its name."""

    parts: Mapping[str, Stored]
    dtype: torch.dtype
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Its size as numbers."""
        return size_bytes(self.shape, self.dtype)

    def read(self) -> torch.Tensor:
        """Return the numbers that the 4 bits stand for."""
        return nf4.dequantise({suffix: part.read() for suffix, part in self.parts.items()})


def as_numbers(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return tensors of a file with each matrix in 4 bits, of several parts, as one `Dequantised`.

    Raises `LoadError` where the parts do not say what they are.
    """
    result = dict(stored)
    for key in stored:
        if is_nf4(key, stored):
            parts = parts_of(key, stored)
            result[key] = _dequantised(parts)
            for suffix in parts:
                if suffix:
                    del result[key + suffix]
    return result


def _dequantised(parts: Mapping[str, Stored]) -> Dequantised:
    described = next((part for suffix, part in parts.items() if suffix.startswith(STATE)), None)
    try:
        state = json.loads(bytes(described.read().tolist())) if described else {}
        shape = tuple(int(side) for side in state["shape"])
        dtype = getattr(torch, state["dtype"])
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise LoadError(nf4.DAMAGED) from error
    if not isinstance(dtype, torch.dtype):
        raise LoadError(nf4.DAMAGED)
    return Dequantised(parts, dtype, shape)
