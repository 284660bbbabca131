"""8-bit weights, one scale per output feature; activations keep their dtype.

Not bitsandbytes' LLM.int8, which turns activations into float16: Gemma 3's overflow there.
Shapes: N output features, K input features, M rows of activations.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import linear
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from gemma3vl_app.loading import compiled, compiled_bf16
from gemma3vl_app.loading.w16 import widened_product

SCALE = ".scale"  # after the weight's own name
LARGEST = 127
ALIGNED_BYTES = 64  # one AVX-512 vector
ROWS_AT_ONCE = 1 << 14  # of a matrix that is turned into floats, or quantised
# Up to here what reads int8 beats turning the matrix into floats: torch's kernel, and ours.
FEW_ROWS, FEW_ROWS_COMPILED = 32, 128

Parts = dict[str, torch.Tensor]


def quantise(weight: torch.Tensor) -> Parts:
    """Return the parts of a matrix (N, K): int8 weights, and float32 scales (N,).

    Scales are rounded up to bf16 values before the weights are divided by them, so that computing
    in bf16 adds no error of its own.
    """
    # Filled, not put together: a table in pieces and as a whole would be there twice.
    values = torch.empty_like(weight, dtype=torch.int8)
    scales = weight.new_empty(len(weight), dtype=torch.float32)
    for some in _slices(len(weight)):
        values[some], scales[some] = _quantise_rows(weight[some])
    return {"": values, SCALE: scales}


def _slices(rows: int) -> Iterator[slice]:
    """Cut a matrix into pieces: embeddings widened at once would take gigabytes."""
    return (slice(first, first + ROWS_AT_ONCE) for first in range(0, rows, ROWS_AT_ONCE))


def _quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    largest = weight.float().abs().amax(dim=1).clamp(min=torch.finfo(torch.bfloat16).tiny)  # (N,)
    scale = largest / LARGEST
    rounded = scale.to(torch.bfloat16).float()
    above = rounded.to(torch.bfloat16).nextafter(torch.tensor(float("inf"), dtype=torch.bfloat16))
    scale = torch.where(rounded < scale, above.float(), rounded)
    values = (weight.float() / scale[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return values.to(torch.int8), scale


def aligned(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix whose memory the CPU kernel may read.

    On processors with AVX-512 it loads whole aligned vectors, and the process ends where a matrix
    begins elsewhere: as those do that lie in a memory-mapped file, 8 bytes after the next.
    """
    if weight.device.type == "cpu" and weight.data_ptr() % ALIGNED_BYTES:
        return weight.clone()
    return weight


class Int8Linear(torch.nn.Linear):
    """A linear layer without bias whose weight is int8 (N, K), with a scale per output feature."""

    scale: torch.Tensor

    def __init__(self, parts: Parts, dtype: torch.dtype) -> None:
        """Take the stored `parts`, to compute in `dtype`."""
        outputs, inputs = parts[""].shape
        super().__init__(inputs, outputs, bias=False, device="meta")
        self.weight = torch.nn.Parameter(parts[""], requires_grad=False)
        self.register_buffer("scale", parts[SCALE].to(dtype))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply activations (..., K) with the weights; returns (..., N) in their dtype."""
        rows = input.reshape(-1, self.in_features)  # (M, K)
        # The kernel has no gradient.
        differentiable = torch.is_grad_enabled() and input.requires_grad
        if input.device.type == "cpu" and not differentiable and _are_few(rows):
            output = _multiply_few(rows, self.weight, self.scale)  # (M, N)
        elif input.device.type == "cpu":
            output = widened_product(rows, self.weight) * self.scale.to(input.dtype)
        else:
            some = [self.weight[each] for each in _slices(len(self.weight))]
            output = torch.cat([linear(rows, each.to(rows.dtype)) for each in some], -1)
            output = output * self.scale.to(input.dtype)
        return output.reshape(*input.shape[:-1], self.out_features)


class Int8Embedding(Gemma3TextScaledWordEmbedding):
    """Embeddings whose table is the int8 output matrix (N, K), with a scale per row."""

    scale: torch.Tensor

    def take(self, parts: Parts, dtype: torch.dtype) -> None:
        """Take the stored `parts`; rows come out in `dtype`."""
        self.weight = torch.nn.Parameter(parts[""], requires_grad=False)
        self.register_buffer("scale", parts[SCALE].to(dtype))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look up ids (...); returns (..., K)."""
        rows = self.weight.detach()[input_ids].float() * self.scale[input_ids].float()[..., None]
        return (rows * self.embed_scale.float()).to(self.scale.dtype)


def _are_few(rows: torch.Tensor) -> bool:
    """Whether rows (M, K) are few enough for `_multiply_few`."""
    kernels = {torch.float32: compiled, torch.bfloat16: compiled_bf16}.get(rows.dtype)
    is_ours = kernels is not None and kernels.few_rows(torch.int8) is not None
    return len(rows) <= (FEW_ROWS_COMPILED if is_ours else FEW_ROWS)


def _multiply_few(rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiply a few rows (M, K) with weights (N, K); returns (M, N) in the rows' dtype."""
    if rows.dtype == torch.float32 and (multiply := compiled.few_rows(torch.int8)):
        return multiply(rows, weight) * scale
    if rows.dtype == torch.bfloat16 and (multiply_bf16 := compiled_bf16.few_rows(torch.int8)):
        return multiply_bf16(rows, weight, scale.to(torch.bfloat16))
    weight = aligned(weight)  # weights on disk lie where they lie
    # In bf16: the kernel's float32 form is ten times slower, and 8 bits err more than that.
    output = torch._weight_int8pack_mm(
        rows.to(torch.bfloat16).contiguous(), weight, scale.to(torch.bfloat16)
    )
    return output.to(rows.dtype)
