"""A pass beside a sequence: several continuations of it at once, none of them stored.

For looking closer at what was computed, with gradients if need be. Knows nothing of what is looked
for. Shapes: B rows, H query heads, H_kv key/value heads, n new tokens, m queries of a part, D head
width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import scaled_dot_product_attention

from gemma3vl_app.engine.attention import allowed, counted_from
from gemma3vl_app.engine.kv import SequenceKV, first_visible
from gemma3vl_app.prompting.prompt import Ids

_PART_CELLS = 1 << 22  # queries x keys of one mask: bounds its memory, however long the prompt


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

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return where the new tokens stand; see `Pass.positions`."""
        return counted_from([self._kv.length] * self._rows, self.count, device)

    def advance(self) -> None:
        """Keep nothing."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attend over what is stored and what is new; see `Pass.attend`."""
        keys, values = self.keys(layer, key), self._values(layer, value)
        if query.device.type != "cpu":  # CUDA's fused kernels take grouped heads without a mask
            repeats = query.shape[1] // keys.shape[1]
            keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
        outputs = [
            scaled_dot_product_attention(
                query[:, :, queries],
                keys[:, :, seen],
                values[:, :, seen],
                attn_mask=mask,
                scale=scaling,
                enable_gqa=True,
            )
            for queries, seen, mask in self.parts(layer, query.device)
        ]
        return torch.cat(outputs, dim=2)

    def keys(self, layer: int, key: torch.Tensor) -> torch.Tensor:
        """Return all keys that new ones (B, H_kv, n, D) stand among: (B, H_kv, visible, D).

        The first is at position `first(layer)`.
        """
        stored = self._kv.stored(layer)
        return key if stored is None else _joined(stored[0], key)

    def first(self, layer: int) -> int:
        """Return the position of the first key that a layer's first query sees."""
        return first_visible(self._kv.length, self._kv.windows[layer])

    def parts(
        self, layer: int, device: torch.device
    ) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Yield the queries in parts: which of them, which of `keys` they can see, and the mask.

        The mask is bool (m, keys of the part). A part of a sliding layer looks at its window only.
        """
        start, first, window = self._kv.length, self.first(layer), self._kv.windows[layer]
        visible = start + self.count - first
        step = max(1, _PART_CELLS // visible)
        for begin in range(0, self.count, step):
            end = min(begin + step, self.count)
            low = first_visible(start + begin, window)
            queries = range(start + begin, start + end)
            mask = allowed(queries, range(low, start + self.count), window, start, self._blocks)
            # The last ones of a part may see to the end of their picture, nothing sees further.
            reach = int(mask.any(0).nonzero()[-1]) + 1
            yield (
                slice(begin, end),
                slice(low - first, low - first + reach),
                mask[:, :reach].to(device),
            )

    def _values(self, layer: int, value: torch.Tensor) -> torch.Tensor:
        stored = self._kv.stored(layer)
        return value if stored is None else _joined(stored[1], value)


def _joined(stored: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Put stored (H_kv, m, D) before new (B, H_kv, n, D); returns (B, H_kv, m + n, D)."""
    expanded = stored.expand(new.shape[0], *stored.shape)
    if torch.is_grad_enabled() and stored.is_inference():
        expanded = expanded.clone()  # autograd keeps no tensors of inference mode
    return torch.cat([expanded, new], dim=2)
