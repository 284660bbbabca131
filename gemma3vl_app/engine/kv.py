"""Keys and values of one sequence: grown in place, shared by forks, dropped past the window.

Knows nothing of tokens or pictures. Shapes: H_kv key/value heads, D head width, n tokens.

Each layer owns a `KVLog`: a buffer that is only ever appended to. Several sequences may hold the
same log with different lengths. Whoever appends first, exactly at the log's end, writes in place;
everybody else (an edit, a second branch) copies what its length covers into a new log first. So a
snapshot costs nothing when taken, and nothing that somebody else can see is ever overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

_MIN_ROOM_TOKENS = (
    128  # spare room of a new buffer: the least number of decode steps before it moves
)


class KVLog:
    """Keys and values of one layer for the positions `first` up to `filled`; append-only."""

    __slots__ = ("filled", "first", "keys", "shared", "values")

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, first: int) -> None:
        self.keys = keys  # (H_kv, capacity, D)
        self.values = values  # (H_kv, capacity, D)
        self.first = first  # absolute position of the buffer's first column
        self.filled = first  # absolute position after the last column anybody wrote
        self.shared = first  # absolute position after the last column that a fork was given

    @property
    def end(self) -> int:
        """The absolute position at which the buffer is full."""
        return self.first + int(self.keys.shape[1])

    @property
    def allocated_bytes(self) -> int:
        """Bytes of both buffers, spare room included."""
        return self.keys.nbytes + self.values.nbytes


class SequenceKV:
    """The keys and values of one sequence, over all layers, for its first `length` positions.

    `windows` holds for each layer its sliding window in tokens, or None for global attention.
    The last `spare` tokens can always be taken back, whatever the windows; snapshots need one.
    A forward pass calls `append` once per layer and then `advance` (or `advance_unsure`) once.
    """

    def __init__(
        self, windows: Sequence[int | None], *, expected_tokens: int = 0, spare: int = 1
    ) -> None:
        self.windows = tuple(windows)
        self.spare = spare
        self.length = 0
        self.expected_tokens = expected_tokens
        self._logs: list[KVLog | None] = [None] * len(self.windows)

    def fork(self, length: int, *, expected_tokens: int = 0) -> SequenceKV:
        """Return a second sequence that shares the first `length` positions; copies nothing."""
        if not self.can_rewind(length):
            raise ValueError(f"positions before {length} have left the sliding window")
        child = SequenceKV(self.windows, expected_tokens=expected_tokens, spare=self.spare)
        child.length = length
        child._logs = list(self._logs)
        for log in child.logs():
            log.shared = max(log.shared, length)
        return child

    def can_rewind(self, length: int) -> bool:
        """Tell whether the first `length` positions are all still here, as far as windows reach."""
        if not 0 <= length <= self.length:
            return False
        return all(
            log is None or log.first <= first_visible(length, window)
            for log, window in zip(self._logs, self.windows, strict=True)
        )

    def append(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values of a layer; return all that its new queries may look at.

        Takes (H_kv, n, D) each; returns views (H_kv, visible, D) whose last n columns are the new
        ones. The first visible position is `first_visible(length, window)`.
        """
        count = int(keys.shape[1])
        log = self._log_with_room(layer, count, keys, values)
        start, stop = self.length - log.first, self.length - log.first + count
        log.keys[:, start:stop] = keys
        log.values[:, start:stop] = values
        log.filled = self.length + count
        begin = first_visible(self.length, self.windows[layer]) - log.first
        return log.keys[:, begin:stop], log.values[:, begin:stop]

    def stored(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return keys and values that a query at `length` sees of what is stored; None: nothing.

        Views (H_kv, visible, D) from position `first_visible(length, window)` on, not to be
        written to.
        """
        log = self._logs[layer]
        if log is None or self.length == 0:
            return None
        begin = first_visible(self.length, self.windows[layer]) - log.first
        stop = self.length - log.first
        return log.keys[:, begin:stop], log.values[:, begin:stop]

    def parts(self) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        """Return for each layer its first stored position, and keys and values from there on.

        Views (H_kv, length - first, D). Of a fork, nobody writes there again: see `KVLog.shared`.
        """
        counts = [(log, self.length - log.first) for log in self.logs()]
        return [(log.first, log.keys[:, :count], log.values[:, :count]) for log, count in counts]

    def restore(
        self, layer: int, first: int, keys: torch.Tensor, values: torch.Tensor, device: torch.device
    ) -> None:
        """Copy to `device` what a layer still needs of its part (see `parts`) up to `length`."""
        log = KVLog(keys, values, first)
        log.filled = self.length
        self._logs[layer] = self._moved(log, self.windows[layer], 0, device=device)

    def advance(self, count: int) -> None:
        """Count `count` tokens as stored in every layer; sliding layers drop a chunk's excess.

        A guessed token may turn out wrong: see `advance_unsure`.
        """
        self._advance(count, unsure=0)

    def advance_unsure(self, count: int) -> None:
        """Count `count` tokens as stored, of which any number may be taken back at once."""
        self._advance(count, unsure=count)

    def _advance(self, count: int, unsure: int) -> None:
        self.length += count
        for layer, (log, window) in enumerate(zip(self._logs, self.windows, strict=True)):
            if window is not None and log is not None and log.keys.shape[1] > 3 * window:
                self._logs[layer] = self._moved(log, window, 0, unsure)

    def take_back(self, length: int) -> None:
        """Forget the tokens from `length` on: guesses that were wrong, or a pass that failed.

        What nobody else has been given is written over, so that nothing is copied for it.
        """
        if not self.can_rewind(length):
            raise ValueError(f"positions before {length} have left the sliding window")
        for log in self.logs():
            if log.filled == self.length:  # the end is ours
                log.filled = max(length, log.shared)
        self.length = length

    def logs(self) -> Iterator[KVLog]:
        """Iterate over the buffers this sequence keeps alive."""
        return (log for log in self._logs if log is not None)

    def _log_with_room(
        self, layer: int, count: int, keys: torch.Tensor, values: torch.Tensor
    ) -> KVLog:
        """Return a log with room at `length` for `count` tokens: the old one, or a new copy."""
        log, window = self._logs[layer], self.windows[layer]
        if log is None:  # nothing is stored yet: an empty log to move from
            log = KVLog(keys[:, :0], values[:, :0], 0)
        elif log.filled == self.length and self.length + count <= log.end:
            return log
        moved = self._moved(log, window, count)
        self._logs[layer] = moved
        return moved

    def _moved(
        self,
        log: KVLog,
        window: int | None,
        count: int,
        unsure: int = 0,
        device: torch.device | None = None,
    ) -> KVLog:
        """Copy what a layer still needs of `log` into a new one with room for `count` and more.

        The last `unsure` tokens can be taken back, and the spare ones before them. It lies on
        `device`, where one is given, else where `log` does.
        """
        # Earlier positions than the next query sees: those that it sees once tokens are taken back.
        first = max(log.first, first_visible(self.length - unsure, window) - self.spare)
        kept = self.length - first
        if window is None:
            room = max(_MIN_ROOM_TOKENS, (kept + count) // 2)
            capacity = max(kept + count + room, self.expected_tokens + _MIN_ROOM_TOKENS)
        else:
            capacity = kept + count + window
        heads, _, width = log.keys.shape
        new = KVLog(
            log.keys.new_empty(heads, capacity, width, device=device),
            log.values.new_empty(heads, capacity, width, device=device),
            first,
        )
        old = slice(first - log.first, self.length - log.first)
        new.keys[:, :kept] = log.keys[:, old]
        new.values[:, :kept] = log.values[:, old]
        new.filled = self.length
        return new


def first_visible(position: int, window: int | None) -> int:
    """Return the first position that a query at `position` attends to.

    Sliding layers see `window` tokens, the query's own included: `query - key < window`
    (transformers' `sliding_window_overlay`).
    """
    return 0 if window is None else max(0, position - window + 1)
