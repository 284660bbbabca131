"""Guesses for the paths that are compared: what is known to come, or none at all."""

from __future__ import annotations

from collections.abc import Sequence

from gemma3vl_app.engine.sequence import Sequence as Running
from gemma3vl_app.engine.speculation.policy import PassCosts
from gemma3vl_app.engine.speculation.speculation import Speculation


class Recorded:
    """Guesses answers that are known, but for the last token of each guess, which is wrong."""

    token_sec = 0.0

    def __init__(self, answers: dict[int, list[int]]) -> None:
        self._answers = answers  # by the identity of the prompt

    def begin_pass(self) -> None:
        """Nothing: what is said is known."""

    def available(self, sequence: Running) -> int:
        """Return how many tokens of the known answer are left; none once it differs."""
        return len(self._rest(sequence))

    def propose(self, wanted: Sequence[tuple[Running, int]]) -> list[list[int]]:
        """Return the known answer's next tokens, the last one of them replaced."""
        guesses = [self._rest(sequence)[:count] for sequence, count in wanted]
        return [[*guess[:-1], guess[-1] ^ 1] for guess in guesses]

    def forget(self, sequence: Running) -> None:
        """Nothing: nothing is kept."""

    def _rest(self, sequence: Running) -> list[int]:
        answer, said = self._answers[id(sequence.request.prompt)], sequence.generated
        return answer[len(said) :] if answer[: len(said)] == said else []


class Counting(Speculation):
    """Guesses nothing, and notes how many answers went on in one pass at most."""

    def __init__(self) -> None:
        super().__init__(Recorded({}))
        self.widest = 0

    def guesses(self, rows: Sequence[Running]) -> list[list[int]]:
        """Return no guesses."""
        return [[] for _ in rows]

    def note_pass(self, rows: int, began: float) -> None:
        """Take the width of a pass that has ended well."""
        self.widest = max(self.widest, rows)


class NoCosts(PassCosts):
    """Lets everything be guessed: whether it pays is not what is asked."""

    def stale(self, rows: int) -> bool:
        """Return that nothing has to be measured first."""
        return False

    def seconds(self, rows: int) -> float:
        """Return the same for every pass."""
        return 1.0
