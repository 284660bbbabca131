"""Attention of the vision tower in C, for processors with AVX512-BF16.

Shapes: B pictures, P patches, H heads, D head width.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from gemma3vl_app.loading.c_library import load_kernels

# Query, key and value (B, P, H, D) in bfloat16 and a positive scaling, to (B, P, H, D)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]

SOURCE = "tower_attention.c"
FOR_PROCESSOR = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mfma")
KEYS = 128  # of a block, as in the source
MOST_WIDTH = 128  # of a head, as in the source
CLOSE = 0.01  # relative error against attention in float32: bfloat16 itself errs by 0.002


def fits(width: int, scaling: float) -> bool:
    """Whether the kernel can attend with heads of `width` and this scaling."""
    return width % 2 == 0 and 0 < width <= MOST_WIDTH and scaling > 0


@functools.cache
def tower_kernel() -> Attend | None:
    """Return the compiled attention, checked against torch's; None: not here."""
    has_bf16 = torch.cpu.get_capabilities().get("avx512_bf16")
    return load_kernels(SOURCE, FOR_PROCESSOR if has_bf16 else None, _wrapped)


def _wrapped(library: ctypes.CDLL) -> Attend:
    attend = _attend(library)
    _check(attend)
    return attend


def _attend(library: ctypes.CDLL) -> Attend:
    run = library.attend
    run.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_long] * 4 + [ctypes.c_float]
    run.restype = None

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        given = (query, key, value)
        shape = query.shape
        if any(each.shape != shape or each.dim() != 4 for each in given):
            raise TypeError(" with ".join(str(tuple(each.shape)) for each in given))
        if any(each.dtype != torch.bfloat16 or each.device.type != "cpu" for each in given):
            raise TypeError(" with ".join(f"{each.dtype} on {each.device}" for each in given))
        batch, patches, heads, width = shape
        if not fits(width, scaling):
            raise TypeError(f"heads of {width}, scaled by {scaling}")
        query, key, value = (each.contiguous() for each in given)
        output = torch.empty_like(query)
        if not output.numel():
            return output
        padded = -(-patches // KEYS) * KEYS
        room = query.new_empty(2, batch * heads * padded * width)  # the kernel's own keys, values
        tensors = (query, key, value, output, *room)
        run(*(each.data_ptr() for each in tensors), batch, patches, heads, width, scaling)
        return output

    return attend


def _check(attend: Attend) -> None:
    """Raise `ValueError` unless it computes as torch does, odd sizes included."""
    made = torch.Generator().manual_seed(0)
    for shape in ((1, 1, 1, 2), (2, 7, 2, 8), (1, KEYS + 67, 2, 72)):
        query, key, value = (torch.randn(shape, generator=made).bfloat16() for _ in range(3))
        found = attend(query, key, value, 0.3).float().transpose(1, 2)
        query, key, value = (each.float().transpose(1, 2) for each in (query, key, value))
        expected = scaled_dot_product_attention(query, key, value, scale=0.3)
        if not (found - expected).norm() <= CLOSE * expected.norm():
            raise ValueError("the compiled attention computes wrongly")
