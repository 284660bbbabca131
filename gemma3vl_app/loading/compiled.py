"""Our kernels in C, compiled at first use where there is a compiler; torch stands in elsewhere.

Shapes: M rows, N output features, K input features.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gemma3vl_app.loading.c_library import load_kernels

Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (M, K), (N, K) to (M, N)
# Packed 4-bit weights (N, K / 2), scales and zeros (K / 32, N, 2), rows in a block; to (N, K)
Widen = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]

SOURCE = "few_rows.c"
FUNCTIONS = {torch.bfloat16: "multiply_16", torch.int8: "multiply_8"}
FOR_PROCESSOR = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx512f", "-mfma")}
GROUP = 32  # 4-bit weights that share a scale
CLOSE = 1e-5  # relative error against torch's own product

_is_off = False


def few_rows(dtype: torch.dtype) -> Multiply | None:
    """Return what multiplies float32 rows (M, K) with a matrix (N, K) of `dtype`; None: not here.

    The matrix is bfloat16 or int8 (without its scales).
    """
    kernels = None if _is_off else _kernels()
    return kernels.multiply[dtype] if kernels else None


def widen_4() -> Widen | None:
    """Return what turns 4-bit weights in the order of `int4` into float32; None: not here."""
    kernels = None if _is_off else _kernels()
    return kernels.widen_4 if kernels else None


def is_off() -> bool:
    """Whether kernels in C are switched off for now."""
    return _is_off


@contextmanager
def switched_off() -> Iterator[None]:
    """Let torch stand in for the kernels meanwhile, in all threads: to compare the two."""
    global _is_off
    before, _is_off = _is_off, True
    try:
        yield
    finally:
        _is_off = before


@dataclass(frozen=True)
class _Kernels:
    multiply: dict[torch.dtype, Multiply]
    widen_4: Widen


@functools.cache
def _kernels() -> _Kernels | None:
    flags = FOR_PROCESSOR.get(torch.backends.cpu.get_cpu_capability())
    return load_kernels(SOURCE, flags, _wrapped)


def _wrapped(library: ctypes.CDLL) -> _Kernels:
    multiply = {dtype: _multiply(library, dtype) for dtype in FUNCTIONS}
    kernels = _Kernels(multiply, _widen_4(library))
    _check(kernels)
    return kernels


def _multiply(library: ctypes.CDLL, dtype: torch.dtype) -> Multiply:
    run = getattr(library, FUNCTIONS[dtype])
    run.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 3
    run.restype = None

    def multiply(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        outputs, inputs = weight.shape
        if rows.dtype != torch.float32 or weight.dtype != dtype or rows.shape[1] != inputs:
            raise TypeError(f"{rows.dtype} {tuple(rows.shape)} with {weight.dtype} {weight.shape}")
        if rows.device.type != "cpu" or weight.device.type != "cpu":
            raise TypeError(
                f"rows on {rows.device} and a matrix on {weight.device}, not on the CPU"
            )
        rows, weight = rows.contiguous(), weight.contiguous()
        output = torch.empty(len(rows), outputs, dtype=torch.float32, device="cpu")
        pointers = (rows.data_ptr(), weight.data_ptr(), output.data_ptr())
        run(*pointers, len(rows), outputs, inputs)
        return output

    return multiply


def _widen_4(library: ctypes.CDLL) -> Widen:
    run = library.widen_4
    run.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 4
    run.restype = None

    def widen(packed: torch.Tensor, scales_zeros: torch.Tensor, block: int) -> torch.Tensor:
        rows, inputs = packed.shape[0], 2 * packed.shape[1]
        fits = rows % block == 0 and block % GROUP == 0 and inputs % GROUP == 0
        shape = (inputs // GROUP, rows, 2)
        if not fits or tuple(scales_zeros.shape) != shape or packed.device.type != "cpu":
            raise TypeError(f"{tuple(packed.shape)} with {tuple(scales_zeros.shape)} by {block}")
        if packed.dtype != torch.uint8 or scales_zeros.dtype != torch.bfloat16:
            raise TypeError(f"{packed.dtype} with {scales_zeros.dtype}")
        if scales_zeros.stride()[1:] != (2, 1):
            scales_zeros = scales_zeros.contiguous()  # else a part of a table is read where it lies
        packed, of_all = packed.contiguous(), scales_zeros.stride(0) // 2
        output = torch.empty(rows, inputs, dtype=torch.float32, device="cpu")
        pointers = (packed.data_ptr(), scales_zeros.data_ptr(), output.data_ptr())
        run(*pointers, rows, inputs, block, of_all)
        return output

    return widen


def _check(kernels: _Kernels) -> None:
    """Raise `ValueError` unless the kernels compute as torch does, odd sizes included."""
    made = torch.Generator().manual_seed(0)
    for dtype, multiply in kernels.multiply.items():
        for rows, outputs, inputs in ((1, 19, 77), (7, 32, 64)):
            x = torch.randn(rows, inputs, generator=made)
            weight = (50 * torch.randn(outputs, inputs, generator=made)).clamp(-127, 127).to(dtype)
            _check_close(multiply(x, weight), x @ weight.float().T)
    for block in (GROUP, 2 * GROUP):
        # Of each block and input: byte n has the codes of rows n and n + block / 2.
        shape = (2, 2 * GROUP, block // 2)
        packed = torch.randint(0, 1 << 8, shape, generator=made, dtype=torch.uint8)
        codes = torch.cat([packed & 15, packed >> 4], dim=-1)  # (blocks, inputs, block)
        codes = codes.transpose(1, 2).reshape(2 * block, 2, GROUP).float()
        scales_zeros = torch.randn(2, 2 * block, 2, generator=made).bfloat16()
        scale, zero = scales_zeros.float().transpose(0, 1)[..., None].unbind(2)
        found = kernels.widen_4(packed.view(2 * block, GROUP), scales_zeros, block)
        _check_close(found, ((codes - 8) * scale + zero).flatten(1))


def _check_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    if float((found - expected).norm() / expected.norm()) > CLOSE:
        raise ValueError("the compiled kernels compute wrongly")
