"""DoRA for inference, in the form in which peft's LoRA layers take a variant of themselves.

Imports peft, which takes seconds: imported where an adapter is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraVariant


class Dora(LoraVariant):
    """DoRA with its norms computed once: peft's own recomputes them in every forward pass.

    The adapted layer is factor * (W + scaling * B A), with factor = magnitude / norm of each of its
    rows (https://arxiv.org/abs/2402.09353, equation 5).
    """

    def __init__(self, factor: torch.Tensor) -> None:
        """Take what each output feature is multiplied by, (N,)."""
        self.factor = factor

    def forward(  # type: ignore[override]  # peft calls it on the object it finds
        self,
        module: Any,
        active_adapter: str,
        x: torch.Tensor,
        result: torch.Tensor,
        **unused: Any,
    ) -> torch.Tensor:
        """Return the adapted output (..., N) for input x (..., K) and the base's output."""
        bias = module.bias
        plain = result if bias is None else result - bias
        share = module.lora_B[active_adapter](module.lora_A[active_adapter](x))
        adapted: torch.Tensor = self.factor * (plain + share * module.scaling[active_adapter])
        return adapted if bias is None else adapted + bias
