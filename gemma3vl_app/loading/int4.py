"""4-bit weights for processors: groups of 32 with a scale and a zero each, multiplied by torch.

Keeps its speed with several rows of activations at once, which bitsandbytes' nf4 does not, and is
small and fast on processors without bfloat16, too. Shapes: N output features, K input features, M
rows of activations; G = K / 32 groups.

A weight is (code - 8) * scale + zero, as torch's `_weight_int4pack_mm_for_cpu` has it. Matrices are
stored in the order that the kernel at hand reads, so that they are used from the file's memory map
as they lie. With AVX512-BF16 and VNNI that is a kernel of ours (`int4_vnni`), else torch's: B
output features together (`block_rows`), for each input feature B/2 bytes, each with the codes of
two features that are B/2 apart.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import linear

from gemma3vl_app.loading import compiled, compiled_bf16, int4_vnni
from gemma3vl_app.loading.compiled import GROUP

ZERO_CODE = 8
LARGEST = 15
SCALES = ".scales_zeros"  # after the weight's own name: bf16 (G, N, 2), or as `int4_vnni` has it
# Up to here the kernel beats turning the matrix into floats; measured in float32.
FEW_ROWS = {torch.float32: 32, torch.bfloat16: 64}
ROWS_AT_ONCE = 1 << 12  # of a matrix that is quantised, or turned into floats to stay so
WIDENED = 1 << 21  # weights that are turned into floats to be multiplied: 8 MiB stay in the cache
SHRUNKEN = 0.93  # of the range: cutting off the outermost weights can serve the others better

Parts = dict[str, torch.Tensor]


def block_rows() -> int:
    """Return how many output features lie together, B, in the order of the kernel here."""
    if compiled_bf16.is_here():
        return compiled_bf16.LANES
    return 32 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 64


@functools.cache
def is_supported() -> bool:
    """Whether the kernel here has the order that is known here: tried on a small matrix.

    It has with AVX2 or AVX-512, but for builds that leave its vector code out (Windows).
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    made = torch.Generator().manual_seed(0)
    weight = torch.randn(block_rows(), 2 * GROUP, generator=made)
    parts, few = quantise(weight), torch.eye(2 * GROUP)[: FEW_ROWS[torch.float32]]
    found = Int4Linear(parts)(few)  # by the kernel
    expected = dequantise(parts, torch.float32).T[: len(few)]
    return bool(torch.allclose(found, expected, rtol=0.02, atol=0.02))


def fits(shape: torch.Size | tuple[int, ...]) -> bool:
    """Whether a matrix (N, K) of this shape can be stored; others stay as they are."""
    return shape[0] % block_rows() == 0 and shape[1] % GROUP == 0


def quantise(weight: torch.Tensor) -> Parts:
    """Return the parts of a matrix (N, K): packed codes (N, K / 2), and bf16 scales and zeros.

    For each group the best of three grids by squared error: its whole range, a part of it, and that
    of llama.cpp's Q4_0, whose weights so keep their codes; scales are rounded to bf16.
    """
    pieces = [_quantise_rows(weight[some]) for some in _slices(len(weight), ROWS_AT_ONCE)]
    codes, scales, zeros = (torch.cat(each) for each in zip(*pieces, strict=True))
    if compiled_bf16.is_here():
        packed, scales_zeros = int4_vnni.pack(codes, scales, zeros)
        return {"": packed, SCALES: scales_zeros}
    pack: Any = torch.ops.aten._convert_weight_to_int4pack_for_cpu
    parts = [pack(codes[some].int(), 1) for some in _slices(len(codes), ROWS_AT_ONCE)]
    return {"": torch.cat(parts), SCALES: torch.stack([scales.T, zeros.T], -1).contiguous()}


def dequantise(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """Return the matrix (N, K) that parts stand for."""
    rows = _slices(len(parts[""]), ROWS_AT_ONCE)
    return torch.cat([_dense(parts[""], parts[SCALES], some, dtype) for some in rows])


class Int4Linear(torch.nn.Linear):
    """A linear layer without bias whose weight is packed in 4 bits (N, K / 2)."""

    scales_zeros: torch.Tensor

    def __init__(self, parts: Parts) -> None:
        """Take the stored `parts`; the layer computes in its input's dtype."""
        outputs, inputs = parts[""].shape[0], 2 * parts[""].shape[1]
        super().__init__(inputs, outputs, bias=False, device="meta")
        self.weight = torch.nn.Parameter(parts[""], requires_grad=False)
        self.register_buffer("scales_zeros", parts[SCALES])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply activations (..., K) with the weights; returns (..., N) in their dtype."""
        rows = input.reshape(-1, self.in_features)  # (M, K)
        if torch.is_grad_enabled() and input.requires_grad:  # which the rest is not made for
            output = linear(rows, dequantise(self._parts(), input.dtype))
        elif _is_vnni(self.scales_zeros):
            output = _multiply_vnni(rows, self.weight.detach(), self.scales_zeros)
        elif len(rows) <= FEW_ROWS.get(input.dtype, 0):
            multiply: Any = torch.ops.aten._weight_int4pack_mm_for_cpu
            # In bf16: the kernel's float32 form is ten times slower, and 4 bits err far more.
            product = multiply(
                rows.to(torch.bfloat16).contiguous(), self.weight, GROUP, self.scales_zeros
            )
            output = product.to(input.dtype)
        else:
            output = _multiply_many(rows, self.weight.detach(), self.scales_zeros)
        return output.reshape(*input.shape[:-1], self.out_features)

    def _parts(self) -> Parts:
        return {"": self.weight.detach(), SCALES: self.scales_zeros}


# --- inside ---


def _is_vnni(scales_zeros: torch.Tensor) -> bool:
    """Whether weights are in the order of `int4_vnni`."""
    return scales_zeros.dim() == 4


def _multiply_vnni(
    rows: torch.Tensor, packed: torch.Tensor, scales_zeros: torch.Tensor
) -> torch.Tensor:
    """Multiply rows (M, K) with weights packed by `int4_vnni`; many float32 ones exactly."""
    multiply = compiled_bf16.multiply_4()
    if multiply is None or (rows.dtype == torch.float32 and len(rows) > FEW_ROWS[rows.dtype]):
        return _multiply_many(rows, packed, scales_zeros)
    return multiply(rows.to(torch.bfloat16), packed, scales_zeros).to(rows.dtype)


def _slices(rows: int, at_once: int) -> Iterator[slice]:
    return (slice(first, min(first + at_once, rows)) for first in range(0, rows, at_once))


def _multiply_many(
    rows: torch.Tensor, packed: torch.Tensor, scales_zeros: torch.Tensor
) -> torch.Tensor:
    """Multiply rows (M, K) with packed weights (N, K / 2), some of them at a time: (M, N).

    Faster than with a whole matrix of floats: what has just been widened is still in the cache.
    """
    output = rows.new_empty(len(rows), len(packed))
    block = block_rows()
    at_once = max(1, WIDENED // (rows.shape[1] * block)) * block
    for some in _slices(len(packed), at_once):
        dense = _dense(packed, scales_zeros, some, rows.dtype)
        torch.mm(rows, dense.T, out=output[:, some])
    return output


def _quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes (N, K) uint8, and bf16 scales and zeros (N, G), of some rows."""
    groups = weight.float().reshape(weight.shape[0], -1, GROUP)  # (N, G, 32)
    least, most = groups.amin(-1), groups.amax(-1)
    largest = torch.where(-least > most, least, most)  # by magnitude, with its sign
    middle, span = (most + least) / 2, (most - least) / LARGEST
    best_error = torch.full_like(least, float("inf"))
    best = [torch.zeros_like(groups, dtype=torch.uint8), least.clone(), least.clone()]
    for scale, zero in (
        (span, middle + span / 2),  # code 0 is the least, 15 the most
        (SHRUNKEN * span, middle + SHRUNKEN * span / 2),
        (largest / -ZERO_CODE, torch.zeros_like(largest)),  # Q4_0
    ):
        scale, zero = scale.bfloat16().float(), zero.bfloat16().float()
        safe = torch.where(scale == 0, torch.ones_like(scale), scale)
        codes = (groups - zero[..., None]).div_(safe[..., None]).round_().add_(ZERO_CODE)
        codes = codes.clamp_(0, LARGEST)
        error = (codes - ZERO_CODE).mul_(scale[..., None]).add_(zero[..., None]).sub_(groups)
        error = error.square_().sum(-1)  # (N, G)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best[0] = torch.where(better[..., None], codes.to(torch.uint8), best[0])
        best[1], best[2] = torch.where(better, scale, best[1]), torch.where(better, zero, best[2])
    return best[0].reshape(weight.shape), best[1].bfloat16(), best[2].bfloat16()


def _dense(
    packed: torch.Tensor, scales_zeros: torch.Tensor, some: slice, dtype: torch.dtype
) -> torch.Tensor:
    """Return some rows (n, K) of the matrix in `dtype`."""
    if _is_vnni(scales_zeros):
        tiles = slice(some.start // compiled_bf16.LANES, some.stop // compiled_bf16.LANES)
        return int4_vnni.dense(packed[some], scales_zeros[tiles], dtype)
    if packed.device.type == "cpu" and (widen := compiled.widen_4()):
        return widen(packed[some], scales_zeros[:, some], block_rows()).to(dtype)
    return _widened(packed[some], scales_zeros[:, some], dtype)


def _widened(packed: torch.Tensor, scales_zeros: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return rows (n, K) of the matrix in `dtype`, by torch's own operations."""
    block, features = block_rows(), 2 * packed.shape[1]
    bytes_ = packed.reshape(-1, features, block // 2)  # (n / B, K, B / 2)
    codes = torch.cat([bytes_ & LARGEST, bytes_ >> 4], dim=2)  # low and high: B / 2 apart
    codes = codes.transpose(1, 2)  # (n / B, B, K)
    grouped = codes.reshape(len(packed), -1, GROUP).to(dtype).sub_(ZERO_CODE)  # (n, G, 32)
    scales, zeros = scales_zeros.to(dtype).unbind(-1)  # each (G, n)
    return grouped.mul_(scales.T[..., None]).add_(zeros.T[..., None]).view(len(packed), features)
