"""An adapter folded into the weights of its model, a matrix at a time, when it is read.

Shapes: r rank, N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gemma3vl_app.conversion.layouts import Shape, size_bytes
from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.adapter_files import StoredAdapter, StoredLora
from gemma3vl_app.loading.conversion import Stored

PIECE = 1 << 20  # weights that are added at once
TEXT, VISION_TEXT = "model.", "model.language_model."


@dataclass(frozen=True)
class Folded:
    """A matrix (N, K) with the share of an adapter added, rounded to `dtype`."""

    name: str
    weight: Stored
    adapter: str
    layer: StoredLora
    dtype: torch.dtype

    @property
    def shape(self) -> Shape:
        """Its shape."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return size_bytes(self.shape, self.dtype)

    def read(self) -> torch.Tensor:
        """Return W + scaling B A, added in fp32; for DoRA with each row scaled to its magnitude.

        Some rows at a time: the sum in fp32 takes six times the memory of a matrix in bf16. Raises
        `LoadError` where an adapter's values are not numbers.
        """
        weight, a, b = (each.read() for each in (self.weight, self.layer.a, self.layer.b))
        magnitude = None if self.layer.magnitude is None else self.layer.magnitude.read()
        sums = torch.empty(self.shape, dtype=self.dtype)
        rows = max(1, PIECE // weight.shape[1])
        with torch.no_grad():
            for start in range(0, weight.shape[0], rows):
                some = slice(start, start + rows)
                merged = weight[some].float() + self.layer.scaling * (b[some].float() @ a.float())
                if magnitude is not None:
                    # Equation 5 of https://arxiv.org/abs/2402.09353
                    norms = merged.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
                    merged *= (magnitude.reshape(-1)[some].float() / norms)[:, None]
                sums[some] = merged
        if not torch.isfinite(sums).all():
            raise LoadError(
                f"Adapter {self.adapter!r} holds values that are not numbers, in {self.name}: its "
                "training went wrong, or the file is damaged."
            )
        return sums


def with_adapter(tensors: Mapping[str, Stored], adapter: StoredAdapter) -> dict[str, Stored]:
    """Return `tensors` (by their names in memory) with the adapted matrices replaced by sums.

    Sums have the dtype of their matrix. Raises `LoadError` for an adapter that was made for another
    model.
    """
    result = dict(tensors)
    for layer in adapter.layers:
        name = _target(adapter, layer, tensors)
        weight = tensors[name]
        if tuple(weight.shape) != (layer.b.shape[0], layer.a.shape[1]):
            raise LoadError(
                f"Adapter {adapter.name!r} was made for another size: its {name} is "
                f"{layer.b.shape[0]} x {layer.a.shape[1]}, this model's {weight.shape[0]} x "
                f"{weight.shape[1]}."
            )
        result[name] = Folded(name, weight, adapter.name, layer, weight.dtype)
    return result


def _target(adapter: StoredAdapter, layer: StoredLora, tensors: Mapping[str, Stored]) -> str:
    """Return the name of the weight that a layer adapts.

    Adapters of the text-only class fit the language model of a vision-language model, and the other
    way round.
    """
    name = f"{layer.module}.weight"
    if name not in tensors:
        if name.startswith(VISION_TEXT):
            name = TEXT + name.removeprefix(VISION_TEXT)
        else:
            name = VISION_TEXT + name.removeprefix(TEXT)
    if name not in tensors or len(tensors[name].shape) != 2 or "embed" in name:
        raise LoadError(
            f"Adapter {adapter.name!r} adapts {ascii(layer.module)[:80]}, which is no linear layer "
            f"of this model. Merge it into the model it was trained on"
            f"{f', {adapter.base}' if adapter.base else ''}."
        )
    return name
