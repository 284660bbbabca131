"""Gemma 3's normalisation as one operation of torch instead of seven. Shapes: D width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import rms_norm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm


class FusedRMSNorm(Gemma3RMSNorm):
    """Transformers' `Gemma3RMSNorm`: in float32, times 1 + weight, back to the input's dtype.

    For inference: the weight gets no gradient. Seven small operations are started one by one for
    each norm, and there are over a hundred a token: fused they take a third of the time on a
    processor.
    """

    gain: torch.Tensor

    def take(self, weight: torch.Tensor) -> None:
        """Take the stored weight (D,)."""
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.register_buffer("gain", 1.0 + weight.float(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise vectors (..., D)."""
        return rms_norm(x.float(), self.gain.shape, self.gain, self.eps).type_as(x)


@contextmanager
def plain_norms(model: torch.nn.Module) -> Iterator[None]:
    """Let transformers' own norms compute in a model meanwhile: to compare the two."""
    fused: list[torch.nn.Module] = [
        module for module in model.modules() if isinstance(module, FusedRMSNorm)
    ]
    for module in fused:
        module.__class__ = Gemma3RMSNorm  # it has the stored weight, which is all that one needs
    try:
        yield
    finally:
        for module in fused:
            module.__class__ = FusedRMSNorm
