"""Our kernels in C for processors with AVX512-BF16; torch stands in elsewhere (`bf16_rows.c`).

Shapes: M rows, N output features, K input features, G = K / 32 groups.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gemma3vl_app.loading import compiled
from gemma3vl_app.loading.c_library import load_kernels

# bfloat16 rows (M, K) with a matrix (N, K), and scales (N,) of int8; to bfloat16 (M, N)
Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
# Rows with packed 4-bit weights (N, K / 2) and scales and zeros (N / 16, G, 2, 16)
Multiply4 = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

SOURCE = "bf16_rows.c"
FUNCTIONS = {torch.bfloat16: "multiply_16", torch.int8: "multiply_8"}
# What the processor must have, by its name in torch.cpu, and the compiler's option for it
NEEDED = {
    "avx512_f": "-mavx512f",
    "avx512_bw": "-mavx512bw",
    "avx512_vl": "-mavx512vl",
    "avx512_bf16": "-mavx512bf16",
    "avx512_vnni": "-mavx512vnni",
    "fma3": "-mfma",
}
GROUP, LANES = 32, 16  # inputs that share a scale; output features that lie together
BYTES_OF_GROUP = GROUP + 3 * 4  # of a row made whole numbers: these, and three numbers about them
CLOSE = 0.006  # relative error: results are rounded to bfloat16
CLOSE_4 = 0.02  # rows become int8


def few_rows(dtype: torch.dtype) -> Multiply | None:
    """Return what multiplies bfloat16 rows with a matrix of bfloat16 or int8; None: not here."""
    kernels = None if compiled.is_off() else _kernels()
    return kernels.multiply[dtype] if kernels else None


def multiply_4() -> Multiply4 | None:
    """Return what multiplies bfloat16 rows with 4-bit weights as `int4_vnni` packs them."""
    kernels = None if compiled.is_off() else _kernels()
    return kernels.multiply_4 if kernels else None


def is_here() -> bool:
    """Whether there are kernels for this processor, switched off or not."""
    return _kernels() is not None


@dataclass(frozen=True)
class _Kernels:
    multiply: dict[torch.dtype, Multiply]
    multiply_4: Multiply4


@functools.cache
def _kernels() -> _Kernels | None:
    flags = tuple(NEEDED.values()) if _processor_has(NEEDED) else None
    return load_kernels(SOURCE, flags, _wrapped)


def _wrapped(library: ctypes.CDLL) -> _Kernels:
    multiply = {dtype: _multiply(library, dtype) for dtype in FUNCTIONS}
    kernels = _Kernels(multiply, _multiply_4(library))
    _check(kernels)
    return kernels


def _processor_has(needed: dict[str, str]) -> bool:
    """Whether the processor has all of it, and torch has not been told to make do with less."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    found = torch.cpu.get_capabilities()
    return all(found.get(name, False) for name in needed)


def _multiply(library: ctypes.CDLL, dtype: torch.dtype) -> Multiply:
    run = getattr(library, FUNCTIONS[dtype])
    run.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 3
    run.restype = None

    def multiply(
        rows: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None = None
    ) -> torch.Tensor:
        outputs, inputs = weight.shape
        if rows.dtype != torch.bfloat16 or weight.dtype != dtype or rows.shape[1] != inputs:
            raise TypeError(f"{rows.dtype} {tuple(rows.shape)} with {weight.dtype} {weight.shape}")
        if scales is not None and (scales.dtype, len(scales)) != (torch.bfloat16, outputs):
            raise TypeError(f"{scales.dtype} scales {tuple(scales.shape)} for {outputs} features")
        _check_on_cpu(rows, weight)
        rows, weight = rows.contiguous(), weight.contiguous()
        scales = None if scales is None else scales.contiguous()
        output = torch.empty(len(rows), outputs, dtype=torch.bfloat16, device="cpu")
        of_scales = 0 if scales is None else scales.data_ptr()
        pointers = (rows.data_ptr(), weight.data_ptr(), of_scales, output.data_ptr())
        run(*pointers, len(rows), outputs, inputs)
        return output

    return multiply


def _multiply_4(library: ctypes.CDLL) -> Multiply4:
    run = library.multiply_4
    run.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_long] * 3
    run.restype = None

    def multiply(
        rows: torch.Tensor, packed: torch.Tensor, scales_zeros: torch.Tensor
    ) -> torch.Tensor:
        outputs, inputs = packed.shape[0], 2 * packed.shape[1]
        groups = inputs // GROUP
        fits = outputs % LANES == 0 and inputs % GROUP == 0 and rows.shape[1] == inputs
        if not fits or tuple(scales_zeros.shape) != (outputs // LANES, groups, 2, LANES):
            raise TypeError(
                f"{tuple(rows.shape)} with {tuple(packed.shape)} and {scales_zeros.shape}"
            )
        kinds = (rows.dtype, packed.dtype, scales_zeros.dtype)
        if kinds != (torch.bfloat16, torch.uint8, torch.bfloat16):
            raise TypeError(f"{kinds}")
        _check_on_cpu(rows, packed)
        rows, packed, scales_zeros = (each.contiguous() for each in (rows, packed, scales_zeros))
        output = torch.empty(len(rows), outputs, dtype=torch.bfloat16, device="cpu")
        scratch_bytes = len(rows) * groups * BYTES_OF_GROUP
        scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device="cpu")
        pointers = [each.data_ptr() for each in (rows, packed, scales_zeros, output, scratch)]
        run(*pointers, len(rows), outputs, inputs)
        return output

    return multiply


def _check_on_cpu(rows: torch.Tensor, weight: torch.Tensor) -> None:
    if rows.device.type != "cpu" or weight.device.type != "cpu":
        raise TypeError(f"rows on {rows.device} and a matrix on {weight.device}, not on the CPU")


def _check(kernels: _Kernels) -> None:
    """Raise `ValueError` unless the kernels compute as torch does, odd sizes included."""
    made = torch.Generator().manual_seed(0)
    for dtype, multiply in kernels.multiply.items():
        for count, outputs, inputs in ((1, 19, 77), (15, 32, 64)):
            rows = torch.randn(count, inputs, generator=made).bfloat16()
            weight = (50 * torch.randn(outputs, inputs, generator=made)).clamp(-127, 127).to(dtype)
            _check_close(multiply(rows, weight, None), rows.float() @ weight.float().T, CLOSE)
    # A lane's byte j of vector c: inputs 8 c + j and 8 c + 4 + j.
    codes = torch.randint(0, 16, (2, LANES, 2, 4, 2, 4), generator=made, dtype=torch.uint8)
    packed = (codes[..., 0, :] | codes[..., 1, :] << 4).permute(0, 2, 3, 1, 4)
    scales_zeros = torch.randn(2, 2, 2, LANES, generator=made).bfloat16()
    scale, zero = scales_zeros.float().permute(2, 0, 3, 1)[..., None]  # each (2, LANES, groups, 1)
    dense = ((codes.reshape(2, LANES, 2, GROUP).float() - 8) * scale + zero).reshape(2 * LANES, -1)
    rows = torch.randn(15, 2 * GROUP, generator=made).bfloat16()
    found = kernels.multiply_4(rows, packed.reshape(2 * LANES, GROUP), scales_zeros)
    _check_close(found, rows.float() @ dense.T, CLOSE_4)


def _check_close(found: torch.Tensor, expected: torch.Tensor, close: float) -> None:
    if not float((found.float() - expected).norm() / expected.norm()) <= close:
        raise ValueError("the compiled kernels compute wrongly")
