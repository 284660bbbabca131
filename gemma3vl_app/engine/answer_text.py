"""The text of one answer as it grows: whole characters only, and nothing past a stop string."""

from __future__ import annotations

from collections.abc import Sequence


class AnswerText:
    """Collect pieces of text; hold back an ending that may become a stop string.

    `text` is what has been released. The stop string itself is never released.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._released: list[str] = []
        self._held = ""
        self.stopped = False

    @property
    def text(self) -> str:
        """Everything released so far."""
        return "".join(self._released)

    def push(self, piece: str) -> str:
        """Add a piece and return the text it releases; a whole stop string sets `stopped`."""
        self._held += piece
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            released, self._held = self._held[: min(found)], ""
        else:
            count = len(self._held) - self._possible_stop_chars()
            released, self._held = self._held[:count], self._held[count:]
        self._released.append(released)
        return released

    def finish(self) -> str:
        """Release what is still held back, because nothing more will come."""
        released, self._held = self._held, ""
        self._released.append(released)
        return released

    def _possible_stop_chars(self) -> int:
        """Return how many characters at the end could be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for count in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:count]):
                    longest = count
                    break
        return longest
