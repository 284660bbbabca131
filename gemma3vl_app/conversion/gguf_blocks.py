"""Rows of numbers as GGUF stores them: F32, F16, BF16, Q8_0 and Q4_0.

Q4_0 cuts a row into blocks of 32 numbers, each a scale d (fp16) times whole numbers q from -8 to 7.
ggml's own rule takes d from a block's largest number, which spoils weights that lie on such a grid
already, as those do that were read from a Q4_0 file: here their own d and q are found again.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as Kind

from gemma3vl_app.errors import ConversionError

BLOCK = 32  # numbers of a block, of Q8_0 and of Q4_0
LOWEST, HIGHEST = -8, 7  # q of a block of Q4_0
# bf16 keeps 8 bits of the largest number, fp16 11 of d: that leaves up to 8 values of d on each
# side of the quotient, and one for its own rounding.
NEIGHBOURS = 9
GLANCE = 8  # numbers of a block that show whether a closer look is worth it
GLANCE_ERROR = 2**-7  # d is known to 2^-8 from bf16's largest number, and the others are rounded
LARGEST_FP16_BITS = 0x7BFF


def fits(kind: Kind, shape: tuple[int, ...]) -> bool:
    """Whether rows of this length can be stored as `kind`."""
    return bool(shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0)


def stored_bytes(kind: Kind, shape: tuple[int, ...]) -> int:
    """Return how many bytes a tensor of `shape` takes as `kind`."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return int(torch.Size(shape).numel()) // block * block_bytes


def encode(rows: torch.Tensor, kind: Kind) -> npt.NDArray[Any]:
    """Return the bytes of `rows` (R, K), in the file's order; K is a multiple of the block.

    Q4_0 takes the dtype of `rows` for what they were rounded to: see `on_the_grid`.
    """
    if kind == Kind.F32:
        return rows.float().numpy()
    if kind == Kind.F16:
        half = rows.to(torch.float16)
        if not half.isfinite().all():
            raise ConversionError(
                "This model has weights that f16 has no numbers for: its largest is 65,504. "
                "Write bf16 or f32."
            )
        return half.numpy()
    if kind == Kind.BF16:
        return rows.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    if kind == Kind.Q4_0:
        return _q4_0(rows)
    return gguf.quantize(rows.float().numpy(), kind)


def _q4_0(rows: torch.Tensor) -> npt.NDArray[np.uint8]:
    stored: npt.NDArray[np.uint8] = gguf.quantize(rows.float().numpy(), Kind.Q4_0)
    found, scales, codes = on_the_grid(rows.reshape(-1, BLOCK))
    low, high = (codes - LOWEST).to(torch.uint8).chunk(2, dim=1)
    nibbles = (low | (high << 4)).numpy()
    own = np.concatenate([scales[:, None].numpy().view(np.uint8), nibbles], axis=1)
    stored.reshape(-1, own.shape[1])[found.numpy()] = own
    return stored


def on_the_grid(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the blocks (B, 32) that are d times q, with d in fp16 and q from -8 to 7.

    Returns their F indices, scales d (F) and numbers q (F, 32), whose products equal the block,
    rounded to its dtype: exactly in fp32 and fp16, which hold every product whole, and after
    rounding in bf16, where several d may give the same block. ggml's own blocks have q = -8 for
    their largest number; that is tried first, so that they come back as they were.
    """
    values = blocks.float()
    lowest, highest = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    extremes = torch.where(highest > -lowest, highest, lowest)
    shares = values[:, :GLANCE] / extremes  # of blocks that are all zeros: not a number
    remaining = extremes.squeeze(1).isfinite()
    found, scales, codes = [], [], []
    for steps in range(-LOWEST, 0, -1):
        likely = (remaining & _are_whole(shares * steps)).nonzero().squeeze(1)
        rows, d, q = _fitting(blocks, likely, extremes[likely] / -steps)
        remaining[rows] = False
        found.append(rows)
        scales.append(d)
        codes.append(q)
    return torch.cat(found), torch.cat(scales), torch.cat(codes)


def _are_whole(numbers: torch.Tensor) -> torch.Tensor:
    """Tell which rows of `numbers` are whole but for rounding."""
    return ((numbers - numbers.round()).abs() <= GLANCE_ERROR * numbers.abs()).all(1)


def _fitting(
    blocks: torch.Tensor, rows: torch.Tensor, quotients: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return those of `rows` that are a scale in fp16 near their quotient (R, 1) times whole q."""
    wanted = blocks[rows]
    values = wanted.float()
    q = (values / quotients).round_().clamp_(LOWEST, HIGHEST)
    best = (values * q).sum(1) / (q * q).sum(1)  # in bf16 far closer than the quotient
    found: list[torch.Tensor] = []
    scales: list[torch.Tensor] = []
    codes: list[torch.Tensor] = []
    rounded = blocks.dtype == torch.bfloat16
    for offset in sorted(range(-NEIGHBOURS, NEIGHBOURS + 1), key=abs) if rounded else [0]:
        if not len(rows) and found:
            break
        d = _neighbour(best, offset)
        fit = ((d.float()[:, None] * q).to(blocks.dtype) == wanted).all(1)
        found.append(rows[fit])
        scales.append(d[fit])
        codes.append(q[fit].to(torch.int8))
        rows, wanted, q, best = (each[~fit] for each in (rows, wanted, q, best))
    return torch.cat(found), torch.cat(scales), torch.cat(codes)


def _neighbour(numbers: torch.Tensor, offset: int) -> torch.Tensor:
    """Return the number in fp16 that is `offset` places further from zero than the nearest."""
    nearest = numbers.to(torch.float16)
    bits = nearest.abs().view(torch.int16) + offset
    return bits.clamp(0, LARGEST_FP16_BITS).view(torch.float16).copysign(nearest)
