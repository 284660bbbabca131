"""A pass beside a sequence: several continuations of it at once, none of them stored.

For looking closer at what was computed, with gradients if need be. Knows nothing of what is looked
for. Shapes: B rows, H query heads, H_kv key/value heads, n new tokens, D head width.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from gemma3vl_app.engine.attention import visible
from gemma3vl_app.engine.kv import SequenceKV, first_visible
from gemma3vl_app.prompting.prompt import Ids


class Aside:
    """`rows` continuations of `kv`, each of `count` tokens whose pictures lie at the same places.

    Keeps the rules of attention of `engine.attention.Batch`, and `kv` as it is. `blocks` (n,) is as
    there. Gradients flow through the new tokens; what `kv` holds is constant.
    """

    def __init__(self, kv: SequenceKV, rows: int, count: int, blocks: Ids | None = None) -> None:
        self.count = count
        self._kv = kv
        self._rows = rows
        self._blocks = blocks
        self._masks: dict[tuple[int | None, torch.device], torch.Tensor] = {}

    @property
    def starts(self) -> tuple[int, ...]:
        """The position of each row's first new token."""
        return (self._kv.length,) * self._rows

    def advance(self) -> None:
        """Keep nothing."""

    def first(self, layer: int) -> int:
        """Return the position of the first key that a layer's first query sees."""
        return first_visible(self._kv.length, self._kv.windows[layer])

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attend over what is stored and what is new; see `Pass.attend`."""
        stored = self._kv.stored(layer)
        if stored is not None:
            value = _joined(stored[1], value)
        key = self.keys(layer, key)
        if query.device.type != "cpu":  # CUDA's fused kernels take grouped heads without a mask
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        mask = self.mask(layer, query.device)
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
        )

    def keys(self, layer: int, key: torch.Tensor) -> torch.Tensor:
        """Return all keys that new ones (B, H_kv, n, D) stand among: (B, H_kv, visible, D)."""
        stored = self._kv.stored(layer)
        return key if stored is None else _joined(stored[0], key)

    def mask(self, layer: int, device: torch.device) -> torch.Tensor:
        """Return which of `keys` each new query sees: bool (n, visible)."""
        window = self._kv.windows[layer]
        if (window, device) not in self._masks:
            self._masks[window, device] = visible(
                self._kv.length, self.count, window, self._blocks, device
            )
        return self._masks[window, device]


def _joined(stored: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Put stored (H_kv, m, D) before new (B, H_kv, n, D); returns (B, H_kv, m + n, D)."""
    expanded = stored.expand(new.shape[0], *stored.shape)
    if torch.is_grad_enabled() and stored.is_inference():
        expanded = expanded.clone()  # autograd keeps no tensors of inference mode
    return torch.cat([expanded, new], dim=2)
