"""A forward pass of several sequences that bring different numbers of new tokens.

The new tokens of all sequences stand in one row, so that every weight is read once for all of them;
each sequence attends over its own keys. Shapes: N new tokens in all, n of one sequence, H query
heads, H_kv key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gemma3vl_app.engine.attention import allowed, attend_packed
from gemma3vl_app.engine.kv import SequenceKV, first_visible


class Ragged:
    """One pass of few new tokens (text only) of each sequence: a `Pass` of one row of N tokens.

    `counts` says how many each brings. They are stored as guesses: any number of them can be taken
    back from their sequence afterwards.
    """

    def __init__(self, rows: Sequence[SequenceKV], counts: Sequence[int]) -> None:
        self.rows = tuple(rows)
        self.counts = tuple(counts)
        self._masks: dict[tuple[int, int | None, torch.device], torch.Tensor] = {}

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return where the new tokens stand in their sequences: int64 (1, N)."""
        ranges = [
            range(kv.length, kv.length + n) for kv, n in zip(self.rows, self.counts, strict=True)
        ]
        return torch.tensor([[position for each in ranges for position in each]], device=device)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Store each sequence's keys and values, then attend: query (1, H, N, D), see `Pass`."""
        group = query.shape[1] // key.shape[1]
        outputs = []
        for row, own in enumerate(self._slices()):
            kv = self.rows[row]
            keys, values = kv.append(layer, key[0, :, own], value[0, :, own])
            mask = self._mask(row, kv.windows[layer], group, query.device)
            outputs.append(attend_packed(query[0, :, own], keys, values, mask, scaling))
        return torch.cat(outputs, dim=1)[None]

    def advance(self) -> None:
        """Count the new tokens as stored, and as guesses."""
        for kv, count in zip(self.rows, self.counts, strict=True):
            kv.advance_unsure(count)

    def _slices(self) -> Iterator[slice]:
        """Iterate over where each sequence's tokens stand among all N."""
        start = 0
        for count in self.counts:
            yield slice(start, start + count)
            start += count

    def _mask(
        self, row: int, window: int | None, group: int, device: torch.device
    ) -> torch.Tensor | None:
        """Return which visible keys each packed query sees: bool (group * n, visible)."""
        count, start = self.counts[row], self.rows[row].length
        if count == 1:
            return None
        if (row, window, device) not in self._masks:
            queries = range(start, start + count)
            keys = range(first_visible(start, window), queries.stop)
            mask = allowed(queries, keys, window, start, None).repeat(group, 1)
            self._masks[row, window, device] = mask.to(device)
        return self._masks[row, window, device]
