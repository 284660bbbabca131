"""When guessing pays: tokens that a pass is expected to give, against what its rows cost.

Plain numbers: knows nothing of models or clocks. A "row" is one new token in a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_GUESSED = 16  # tokens of one sequence in one pass
MOST_ROWS = 64  # guessed tokens of all sequences in one pass: a row of fp32 logits takes 1 MB
_WORTH = 1.05  # by so much faster it has to be: estimates are rough
_ASSUMED_ROW = 0.03  # what a row more costs, in passes of one row, before it was measured
_NEWEST = 0.25  # share of the newest measurement in the mean
_FRESH_PASSES = 64  # contexts grow and machines get busy: after so many, a cost is measured anew
_JUMP = 2.0  # a measurement counts as so many times the mean at most: other programs run, too
_KEPT = 0.85  # how much of its past a sequence's record keeps with each pass
_FIRST_SHARE, _FIRST_WEIGHT = 0.7, 2.0  # what is believed of guesses before the first, and how much
_TRIED = 4  # tokens of a guess that is only to see whether guessing pays again
_FIRST_WAIT, _LAST_WAIT = 32, 512  # guesses that are let go before the next try


class PassCosts:
    """Seconds that a pass takes by its rows: measured where it was, estimated elsewhere."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}
        self._begun: set[int] = set()
        self._passes = 0
        self._measured_at: dict[int, int] = {}  # in passes

    def note(self, rows: int, seconds: float) -> None:
        """Take a measurement; the first of each number of rows only warms libraries up."""
        self._passes += 1
        self._measured_at[rows] = self._passes
        if rows not in self._begun:
            self._begun.add(rows)
        elif rows in self._means:
            known = self._means[rows]
            self._means[rows] += _NEWEST * (min(seconds, _JUMP * known) - known)
        else:
            self._means[rows] = seconds

    def stale(self, rows: int) -> bool:
        """Tell whether a pass of `rows` has to be measured before others are compared with it."""
        if rows not in self._means:
            return True
        return self._passes - self._measured_at[rows] >= _FRESH_PASSES

    def seconds(self, rows: int) -> float:
        """Return what a pass of `rows` takes; any unit while nothing was measured."""
        if rows in self._means:
            return self._means[rows]
        if not self._means:
            return 1 + _ASSUMED_ROW * (rows - 1)
        below = [known for known in sorted(self._means) if known < rows]
        above = [known for known in sorted(self._means) if known > rows]
        if not below:
            return self._means[above[0]]
        base = below[-1]
        return self._means[base] + (rows - base) * self._row_sec(below, above)

    def _row_sec(self, below: list[int], above: list[int]) -> float:
        """Return what a row more takes between, or beyond, numbers of rows that were measured."""
        assumed = _ASSUMED_ROW * self._means[below[0]]
        ends = [below[-1], above[0]] if above else below[-2:]
        if len(ends) < 2:
            return assumed
        measured = (self._means[ends[1]] - self._means[ends[0]]) / (ends[1] - ends[0])
        return max(measured, 0.0) if above else max(measured, assumed)


class Record:
    """How right the guesses about one answer were lately, and how many were let go."""

    def __init__(self) -> None:
        self._right = _FIRST_SHARE * _FIRST_WEIGHT
        self._judged = _FIRST_WEIGHT
        self._let_go = 0
        self._wait = _FIRST_WAIT

    @property
    def share(self) -> float:
        """The chance that a guessed token is right where all before it were."""
        return self._right / self._judged

    def note(self, accepted: int, proposed: int) -> None:
        """Take what became of a guess: its first `accepted` tokens were right."""
        judged = accepted + (accepted < proposed)  # what follows a wrong one says nothing
        self._right = _KEPT * self._right + accepted
        self._judged = _KEPT * self._judged + judged
        if accepted == proposed:
            self._wait = _FIRST_WAIT

    def let_go(self) -> int:
        """Note a guess that does not pay; returns how many tokens to try nevertheless, mostly 0."""
        self._let_go += 1
        if self._let_go < self._wait:
            return 0
        self._let_go = 0
        self._wait = min(2 * self._wait, _LAST_WAIT)
        return _TRIED


@dataclass(frozen=True)
class Chance:
    """What could be guessed of one sequence: up to `most` tokens, each right with `share`."""

    most: int
    share: float


def plan(
    base_rows: int, chances: Sequence[Chance], costs: PassCosts, token_sec: float = 0.0
) -> list[int]:
    """Return how many tokens of each sequence to guess, so that most tokens come each second.

    `base_rows` are the rows of the pass without guesses; `token_sec` is what guessing one token of
    every sequence takes by itself. All zeros where guessing would not be clearly faster.
    """
    # What each further row is worth, the best first: those of one sequence stay in order.
    rows = sorted(
        (-(chance.share**depth), depth, index)
        for index, chance in enumerate(chances)
        for depth in range(1, min(chance.most, MOST_GUESSED) + 1)
    )[:MOST_ROWS]
    best, taken = _WORTH * base_rows / costs.seconds(base_rows), 0
    tokens, deepest = float(base_rows), 0
    for count, (gain, depth, _) in enumerate(rows, start=1):
        tokens -= gain
        deepest = max(deepest, depth)
        rate = tokens / (costs.seconds(base_rows + count) + deepest * token_sec)
        if rate > best:
            best, taken = rate, count
    counts = [0] * len(chances)
    for _, depth, index in rows[:taken]:
        counts[index] = max(counts[index], depth)
    return counts
