"""What a machine can do at most: how fast it reads memory, and how fast it multiplies.

Speeds of a model are shares of these: a decode step reads every weight once, a prompt multiplies
with each of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gemma3vl_app.engine.model import finish_work

_READ_BYTES = 1 << 28  # far more than any processor's cache
_MATMUL_SIDE = 2048
_REPEATS = 5
LONG_SEC = 10.0


@dataclass(frozen=True)
class Ceilings:
    """Bytes read and floating point operations done per second, by one device in one dtype."""

    read_bytes_per_sec: float
    flop_per_sec: float


def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure both: the sum of a large tensor, and the product of two square matrices."""
    large = torch.ones(_READ_BYTES // 4, dtype=torch.float32, device=device)
    read_sec = seconds(lambda: large.sum(), _REPEATS)
    square = torch.ones(_MATMUL_SIDE, _MATMUL_SIDE, dtype=dtype, device=device)
    multiply_sec = seconds(lambda: square @ square, _REPEATS)
    return Ceilings(_READ_BYTES / read_sec, 2 * _MATMUL_SIDE**3 / multiply_sec)


def seconds(work: Callable[[], torch.Tensor], repeats: int) -> float:
    """Return the median seconds of `work` after a warm-up; it returns what it computes."""

    def timed() -> float:
        began = time.perf_counter()
        finish_work(work())
        return time.perf_counter() - began

    return repeated(timed, repeats)


def repeated(timed: Callable[[], float], repeats: int) -> float:
    """Return the median of what `timed` says after a warm-up; what takes long is done once more."""
    warm_up_sec = timed()
    return statistics.median(timed() for _ in range(1 if warm_up_sec > LONG_SEC else repeats))
