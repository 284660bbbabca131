"""Matrices of bfloat16 on processors, a few rows by kernels of ours: of float32, or of bfloat16.

On processors without bfloat16 activations are float32, and so are the numbers, since every bfloat16
is one; half as much memory is held, and read for each token. Nothing is converted at loading:
matrices are used from the file's memory map as they lie.

Shapes: N output features, K input features, M rows of activations.
"""

from __future__ import annotations

import torch
from torch.nn.functional import embedding, linear
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from gemma3vl_app.loading import compiled, compiled_bf16

FEW_ROWS_BF16 = 32  # up to here our kernel beats torch's product of bfloat16
FEW_ROWS = 128  # up to here the compiled kernel beats widening and torch's product
WIDENED = 1 << 21  # weights that are widened at once: 8 MiB, which stay in the processor's cache


class Linear16(torch.nn.Linear):
    """A linear layer over a bfloat16 matrix (N, K), computing in its input's dtype."""

    def __init__(self, weight: torch.Tensor) -> None:
        """Take the matrix; a bias, if there is one, is set afterwards."""
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, bias=False, device="meta")
        self.weight = torch.nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply activations (..., K) with the weights; returns (..., N) in their dtype."""
        if torch.is_grad_enabled() and input.requires_grad:
            return linear(input, self.weight.to(input.dtype), self.bias)
        if input.dtype == torch.bfloat16:
            return self._in_bf16(input)
        rows = input.reshape(-1, self.in_features)  # (M, K)
        few = len(rows) <= FEW_ROWS and rows.device.type == "cpu"
        multiply = compiled.few_rows(torch.bfloat16) if few else None
        output = (multiply or widened_product)(rows, self.weight)
        if self.bias is not None:
            output += self.bias
        return output.reshape(*input.shape[:-1], self.out_features)

    def _in_bf16(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.reshape(-1, self.in_features)  # (M, K)
        few = len(rows) <= FEW_ROWS_BF16 and rows.device.type == "cpu" and self.bias is None
        multiply = compiled_bf16.few_rows(torch.bfloat16) if few else None
        if multiply is None:
            return linear(input, self.weight, self.bias)
        return multiply(rows, self.weight, None).reshape(*input.shape[:-1], self.out_features)


class Embedding16(Gemma3TextScaledWordEmbedding):
    """Embeddings whose table stays in bfloat16; its rows are widened, then scaled."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look up ids (...); returns float32 (..., K)."""
        return embedding(input_ids, self.weight).float() * self.embed_scale.float()


def widened_product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply rows (M, K) with a matrix (N, K), some of its features at a time; returns (M, N).

    Faster than with a whole matrix of floats: what has just been widened is still in the cache.
    """
    at_once = max(1, WIDENED // weight.shape[1])
    parts = [
        linear(rows, weight[first : first + at_once].to(rows.dtype))
        for first in range(0, len(weight), at_once)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
