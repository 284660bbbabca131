"""Requests that wait for the model: callers take turns, and each one's own come in their order.

Whoever sends thirty at once holds up nobody else for longer than somebody who sends one. Needs the
engine's lock, but for counting.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import zip_longest

from gemma3vl_app.engine.sequence import Sequence

TRACES_AT_ONCE = 1  # each may hold much memory, and takes turns with the answers that begin


class WaitingQueue:
    """Iterate over what waits in the order in which it will start, as far as is known now."""

    def __init__(self) -> None:
        self._by_caller: OrderedDict[str, deque[Sequence]] = OrderedDict()  # who is next comes first
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        for turn in zip_longest(*self._by_caller.values()):
            yield from (sequence for sequence in turn if sequence is not None)

    def append(self, sequence: Sequence) -> int:
        """Let a request wait; returns how many will start before it."""
        self._by_caller.setdefault(sequence.request.caller, deque()).append(sequence)
        self._length += 1
        return list(self).index(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let a request wait no longer; raises `ValueError` where it does not."""
        own = self._by_caller.get(sequence.request.caller, deque())
        own.remove(sequence)
        self._length -= 1
        if not own:
            del self._by_caller[sequence.request.caller]

    def take(self, room: int, *, tracing: int) -> list[Sequence]:
        """Take up to `room` requests; traces stay while `tracing` others are as many as may run."""
        taken: list[Sequence] = []
        for sequence in list(self):
            is_trace = sequence.request.tracing is not None
            if len(taken) >= room or (is_trace and tracing >= TRACES_AT_ONCE):
                continue
            tracing += is_trace
            self.remove(sequence)
            taken.append(sequence)
            if (caller := sequence.request.caller) in self._by_caller:
                self._by_caller.move_to_end(caller)
        return taken
