"""The 4-bit layer for weights in the order of bitsandbytes' fused CPU kernel, with a gradient.

Apart from `nf4`, which imports this only where such weights are: bitsandbytes takes seconds to
import. Shapes: N output features, K input features; a block is 64 weights that share one scale.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import modules
from torch.nn.functional import linear

from gemma3vl_app.loading.nf4 import BLOCK, PACKED_ROWS

_untyped: Any = modules


class PackedLinear4bit(_untyped.Linear4bit):  # type: ignore[misc]  # bitsandbytes is untyped
    """`Linear4bit` over packed weights.

    The fused kernel has no gradient and does not say so: what flows back through it is silently
    nothing. Where a gradient is wanted, the layer computes with its weights as numbers instead.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply activations (..., K) with the weights; returns (..., N) in their dtype."""
        if torch.is_grad_enabled() and input.requires_grad:
            dense = matrix(self.weight.data, self.weight.quant_state)
            return linear(input, dense.to(input.dtype))
        output: torch.Tensor = super().forward(input)
        return output


def matrix(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """Return the matrix (N, K) in bf16 that packed weights (N, K / 2) stand for.

    The order is that of `bitsandbytes.functional._convert_weight_packed_for_cpu`: 32 rows together,
    two neighbours of each in turn; of 64 such, the first half in the low bits.
    """
    outputs, inputs = (int(size) for size in state.shape)
    bytes_ = packed.reshape(-1, PACKED_ROWS)
    codes = torch.cat([bytes_ & 0xF, bytes_ >> 4], dim=1)  # (N K / 64, 64)
    pairs = codes.reshape(outputs // PACKED_ROWS, inputs // 2, PACKED_ROWS, 2)
    ordered = pairs.transpose(1, 2).reshape(outputs, inputs)
    values = state.code.to(torch.float32)[ordered.int()]
    scales = state.absmax.float().T.repeat_interleave(BLOCK, dim=1)  # (N, K)
    dense: torch.Tensor = (values * scales).to(torch.bfloat16)
    return dense
