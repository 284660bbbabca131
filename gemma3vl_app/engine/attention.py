"""Attention of new tokens over the keys and values that their sequences have stored.

Registered with transformers under `NAME`, so that its decoder layers call it: projections, norms,
rotary positions and weights stay the reference's own; only what is attended to, and where it
lives, is ours. Knows nothing of tokens. Shapes: B rows, H query heads, H_kv key/value heads, n new
tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from gemma3vl_app.engine.kv import SequenceKV, first_visible
from gemma3vl_app.prompting.prompt import Ids, PreparedPrompt

NAME = "gemma3vl_cached"


class Pass(Protocol):
    """One forward pass of B rows of n new tokens: where they stand, and what they attend to."""

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return where the new tokens stand in their sequences: int64 (B, n)."""
        ...

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attend in one layer: query (B, H, n, D), key, value (B, H_kv, n, D) to (B, H, n, D)."""
        ...

    def advance(self) -> None:
        """Note that the new tokens have passed every layer."""
        ...


class Batch:
    """The rows of one forward pass: each a sequence, all with the same number of new tokens.

    `blocks` (n,) numbers the picture that each new token belongs to, -1 for text; None means no
    pictures. Only a single row may bring more than one new token.
    """

    def __init__(self, rows: Sequence[SequenceKV], count: int, blocks: Ids | None = None) -> None:
        if len(rows) > 1 and count > 1:
            raise ValueError("several rows decode one token each; prefill takes one row")
        self.rows = tuple(rows)
        self.count = count
        self._blocks = blocks
        self._masks: dict[tuple[int | None, torch.device], torch.Tensor] = {}

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return where the new tokens stand; see `Pass.positions`."""
        return counted_from([kv.length for kv in self.rows], self.count, device)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Store the new keys and values, then attend; see `Pass.attend`."""
        outputs = []
        for row, kv in enumerate(self.rows):
            keys, values = kv.append(layer, key[row], value[row])
            mask = self.mask(kv.windows[layer], query.device)
            outputs.append(attend_row(query[row], keys, values, mask, scaling))
        return outputs[0][None] if len(outputs) == 1 else torch.stack(outputs)

    def advance(self) -> None:
        """Count the new tokens as stored."""
        for kv in self.rows:
            kv.advance(self.count)

    def mask(self, window: int | None, device: torch.device) -> torch.Tensor | None:
        """Return which visible keys each new query sees: bool (n, visible); None means all."""
        if self.count == 1:
            return None
        if (window, device) not in self._masks:
            start = self.rows[0].length
            queries = range(start, start + self.count)
            keys = range(first_visible(start, window), queries.stop)
            mask = allowed(queries, keys, window, start, self._blocks)
            self._masks[window, device] = mask.to(device)
        return self._masks[window, device]


def counted_from(starts: Sequence[int], count: int, device: torch.device) -> torch.Tensor:
    """Return the `count` positions from each of `starts` on: int64 (rows, count)."""
    return torch.tensor(starts, device=device)[:, None] + torch.arange(count, device=device)


def allowed(
    queries: range, keys: range, window: int | None, start: int, blocks: Ids | None
) -> torch.Tensor:
    """Return which keys each query sees, both given by their positions: bool (queries, keys).

    The rule of Gemma 3: causal, or both in the same picture; in sliding layers, within the window
    as well (transformers' `create_masks_for_vision_model`). `blocks` numbers the pictures of the
    tokens from `start` on, see `Batch`; what lies before is text, or a picture seen whole.
    """
    query_at = torch.arange(queries.start, queries.stop, dtype=torch.int32)[:, None]
    key_at = torch.arange(keys.start, keys.stop, dtype=torch.int32)[None, :]
    seen = key_at <= query_at  # (queries, keys)
    if blocks is not None:
        numbers = torch.from_numpy(blocks)
        of_query = numbers[queries.start - start : queries.stop - start, None]
        new_keys = range(max(keys.start, start), keys.stop)
        of_key = numbers[None, new_keys.start - start : new_keys.stop - start]
        same_picture = (of_query == of_key) & (of_query >= 0)
        seen[:, new_keys.start - keys.start :] |= same_picture
    if window is not None:
        seen &= key_at > query_at - window
    return seen


def picture_numbers(prompt: PreparedPrompt, start: int, stop: int) -> Ids:
    """Number the picture that each token from `start` to `stop` belongs to; -1 for text; (n,)."""
    numbers = np.full(stop - start, -1, dtype=np.int64)
    for number, (first, last) in enumerate(prompt.image_spans):
        if start <= first < stop:
            numbers[first - start : last - start] = number
    return numbers


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    batch: Pass,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the pass says: transformers' attention interface.

    Takes query (B, H, n, D), key and value (B, H_kv, n, D); returns (B, n, H, D) and no weights.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    return batch.attend(layer, query, key, value, scaling).transpose(1, 2), None


def attend_row(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Attend with query (H, n, D) over keys and values (H_kv, visible, D); returns (H, n, D)."""
    if query.shape[1] == 1:
        return attend_packed(query, keys, values, None, scaling)
    if query.device.type != "cpu":  # CUDA's fused kernels take grouped heads only without a mask
        repeats = query.shape[0] // keys.shape[0]
        keys, values = keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0)
    return scaled_dot_product_attention(
        query[None], keys[None], values[None], attn_mask=mask, scale=scaling, enable_gqa=True
    )[0]


def attend_packed(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Attend as `attend_row` does, for few new tokens: keys are read once, never repeated.

    The query heads of one key head become its "positions". `mask` is then bool
    (heads of a key head * n, visible): the same rows for each head.
    """
    heads, count, width = query.shape
    packed = query.reshape(1, keys.shape[0], -1, width)
    output = scaled_dot_product_attention(
        packed, keys[None], values[None], attn_mask=mask, scale=scaling
    )
    return output.reshape(heads, count, width)  # some kernels return it transposed


AttentionInterface.register(NAME, attend)
