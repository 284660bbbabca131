"""Guesses for the answers that run: who guesses, for whom it pays, and what became of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import Protocol

from gemma3vl_app.engine.sequence import Sequence
from gemma3vl_app.engine.speculation.policy import MOST_GUESSED, Chance, PassCosts, Record, plan

logger = logging.getLogger(__name__)


class Guesser(Protocol):
    """What makes guesses: `Lookup`, or `Draft`."""

    @property
    def token_sec(self) -> float:
        """Seconds that one more guessed token of every sequence takes, the pass aside."""
        ...

    def begin_pass(self) -> None:
        """Be told that the questions of another pass come now."""
        ...

    def available(self, sequence: Sequence) -> int:
        """Return how many tokens it could guess of a sequence now."""
        ...

    def propose(self, wanted: Several[tuple[Sequence, int]]) -> list[list[int]]:
        """Return guesses of at most so many tokens for sequences just asked about, in order."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """Let go of a sequence that has ended."""
        ...


class Speculation:
    """Decides for each pass what is guessed, and learns from what became of it.

    Belongs to the engine's thread. `costs` and `clock` can be given for tests.
    """

    def __init__(
        self,
        guesser: Guesser,
        *,
        costs: PassCosts | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._guesser = guesser
        self._costs = costs or PassCosts()
        self._clock = clock
        self._records: dict[Sequence, Record] = {}
        self._given_up: set[Sequence] = set()  # guessing failed for them

    def guesses(self, rows: Several[Sequence]) -> list[list[int]]:
        """Return the tokens to check for each of the rows of a pass, mostly none.

        A row that has no token yet has none to check. What fails here is no answer's failure.
        """
        try:
            return self._guesses(rows)
        except Exception:
            logger.warning("guessing failed; %d answers go on without", len(rows), exc_info=True)
            self._given_up.update(rows)
            return [[] for _ in rows]

    def _guesses(self, rows: Several[Sequence]) -> list[list[int]]:
        begun = [sequence for sequence in rows if sequence.prompt_end is None]
        if self._costs.stale(len(begun)):  # what a pass without guesses takes has to be known
            return [[] for _ in rows]
        self._guesser.begin_pass()
        chances = [Chance(self._most(each), self._record(each).share) for each in begun]
        if not any(chance.most for chance in chances):
            return [[] for _ in rows]
        counts = plan(len(begun), chances, self._costs, self._guesser.token_sec)
        for index, (sequence, chance) in enumerate(zip(begun, chances, strict=True)):
            if chance.most and not counts[index]:
                counts[index] = min(chance.most, self._record(sequence).let_go())
        wanted = [(each, count) for each, count in zip(begun, counts, strict=True) if count]
        if not wanted:
            return [[] for _ in rows]
        proposed = self._guesser.propose(wanted)
        found = {each: guess for (each, _), guess in zip(wanted, proposed, strict=True)}
        return [found.get(sequence, []) for sequence in rows]

    def note(self, sequence: Sequence, accepted: int, proposed: int) -> None:
        """Take what became of a guess; its tokens count in the answer's usage."""
        sequence.proposed_tokens += proposed
        sequence.accepted_tokens += accepted
        self._record(sequence).note(accepted, proposed)

    def note_pass(self, rows: int, began: float) -> None:
        """Take the time of a pass over so many rows, of which every one was a token fed."""
        self._costs.note(rows, self._clock() - began)

    def now(self) -> float:
        """Return the time, for `note_pass`."""
        return self._clock()

    def forget(self, sequence: Sequence) -> None:
        """Let go of a sequence that has ended."""
        self._records.pop(sequence, None)
        self._given_up.discard(sequence)
        self._guesser.forget(sequence)

    def _most(self, sequence: Sequence) -> int:
        """Return how many tokens may be guessed: one more always comes with them."""
        room = sequence.request.max_new_tokens - len(sequence.generated) - 1
        if room <= 0 or sequence in self._given_up:
            return 0
        return min(room, MOST_GUESSED, self._guesser.available(sequence))

    def _record(self, sequence: Sequence) -> Record:
        return self._records.setdefault(sequence, Record())
