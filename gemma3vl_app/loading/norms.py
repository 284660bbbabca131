"""Gemma 3's normalisation in few operations of torch instead of many. Shapes: D width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import layer_norm, rms_norm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm


class FusedRMSNorm(Gemma3RMSNorm):
    """Transformers' `Gemma3RMSNorm`: in float32, times 1 + weight, back to the input's dtype.

    For inference: the weight gets no gradient. Small operations are started one by one for each
    norm, and there are over a hundred a token. On processors torch's `rms_norm` is many such in
    itself; its `layer_norm` is one, and widens bfloat16 on its way. That also takes the mean away,
    and so is given the vector with its negative behind: their mean is 0, and their variance the
    mean of the squares. One vector takes half as long so; several would be shared out over threads,
    which costs more than it saves.
    """

    gain: torch.Tensor  # (D,)
    twice: torch.Tensor  # (2 D,): the gain, and again

    def take(self, weight: torch.Tensor) -> None:
        """Take the stored weight (D,)."""
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.register_buffer("gain", 1.0 + weight.float(), persistent=False)
        self.register_buffer("twice", self.gain.repeat(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise vectors (..., D)."""
        if x.numel() == len(self.gain) and x.dtype == torch.bfloat16 and x.device.type == "cpu":
            mirrored = torch.cat((x, -x), dim=-1)  # (..., 2 D)
            normed = layer_norm(mirrored, self.twice.shape, self.twice, eps=self.eps)
            return normed.narrow(-1, 0, len(self.gain))
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
