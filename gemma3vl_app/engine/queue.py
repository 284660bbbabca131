"""Requests that wait for the model: who has the fewest at work is next, in turn where several have.

Each caller's own come in their order. Whoever sends thirty at once holds up nobody else for longer
than somebody who sends one. Needs the engine's lock, but for counting.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest

from gemma3vl_app.engine.sequence import Sequence

TRACES_AT_ONCE = 1  # each may hold much memory, and takes turns with the answers that begin


class WaitingQueue:
    """Iterate over what waits in the order in which it will start, as far as is known now."""

    def __init__(self) -> None:
        # In the order of turns: whoever has had one goes to the end.
        self._by_caller: OrderedDict[str, deque[Sequence]] = OrderedDict()
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

    def take(self, room: int, at_work: Iterable[Sequence]) -> list[Sequence]:
        """Take up to `room` requests to join those `at_work`; a trace waits for other traces."""
        begun = list(at_work)
        taken: list[Sequence] = []
        while len(taken) < room and (sequence := self._next([*begun, *taken])) is not None:
            self.remove(sequence)
            taken.append(sequence)
            if (caller := sequence.request.caller) in self._by_caller:
                self._by_caller.move_to_end(caller)
        return taken

    def _next(self, begun: list[Sequence]) -> Sequence | None:
        """Return the request of whoever has the fewest `begun`, the longest since their turn."""
        shares: Mapping[str, int] = Counter(each.request.caller for each in begun)
        may_trace = sum(each.request.tracing is not None for each in begun) < TRACES_AT_ONCE
        able = (
            next((each for each in own if may_trace or each.request.tracing is None), None)
            for own in self._by_caller.values()
        )
        return min(
            (each for each in able if each is not None),
            key=lambda each: shares[each.request.caller],
            default=None,
        )
