"""Guessers that know the answer, and are wrong as often as a test wants."""

from gemma3vl_app.engine.speculation.policy import MOST_GUESSED, PassCosts
from gemma3vl_app.engine.speculation.speculation import Speculation


class Free(PassCosts):
    """A machine on which further rows cost nothing, so that guessing always pays."""

    def seconds(self, rows: int) -> float:
        return 1.0

    def stale(self, rows: int) -> bool:
        return False


class Oracle:
    """Guess from `answers`, the ids by the prompt's bytes; every `wrong`th token wrongly.

    The number of tokens differs from pass to pass and from answer to answer.
    """

    token_sec = 0.0

    def __init__(self, answers: dict[bytes, list[int]], *, wrong: int = 5, most: int = 7) -> None:
        self._answers = answers
        self._wrong = wrong
        self._most = min(most, MOST_GUESSED)
        self.passes: list[list[int]] = []  # how many tokens of each answer were guessed
        self.known: set = set()

    def begin_pass(self):
        pass

    def available(self, sequence) -> int:
        self.known.add(sequence)
        salt = len(sequence.request.prompt) + 3 * len(sequence.generated)
        return min(1 + salt % self._most, len(self._rest(sequence)))

    def propose(self, wanted):
        guesses = []
        for sequence, count in wanted:
            guess = self._rest(sequence)[:count]
            for index in range(len(guess)):
                if self._wrong and (len(sequence.generated) + index) % self._wrong == 0:
                    guess[index] = 7777
            guesses.append(guess)
        self.passes.append([len(guess) for guess in guesses])
        return guesses

    def forget(self, sequence) -> None:
        self.known.discard(sequence)

    def _rest(self, sequence) -> list[int]:
        known = self._answers.get(sequence.request.prompt.ids.tobytes(), [])
        done = len(sequence.generated)
        return list(known[done:]) if known[:done] == sequence.generated else []


def guess_with(backend, guesser) -> None:
    """Let an idle backend guess with `guesser` from now on; None: not at all."""
    speculation = None if guesser is None else Speculation(guesser, costs=Free())
    backend.engine._decoder.speculation = speculation
