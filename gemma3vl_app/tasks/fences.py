"""The code fence that models put around a whole page of text, taken off while it streams."""

from __future__ import annotations

import re

FENCE = "```"
_OPENING = re.compile(r"\s*```(markdown|md|text|plaintext)?[ \t]*\n", re.IGNORECASE)
_MAY_OPEN = re.compile(r"\s*(`{0,3}|```[a-z]*[ \t]*)", re.IGNORECASE)


class Unfencing:
    """Takes a text in pieces and gives it back without a fence around it, nor white space.

    What may turn out to be the fence is held back until that is known. Other fences stay.
    """

    def __init__(self) -> None:
        self._held = ""
        self._begun = False
        self._fenced = False
        self._said = False  # something was given back already

    def feed(self, piece: str) -> str:
        """Return what is certain after `piece`."""
        text, self._held = self._held + piece, ""
        if not self._begun:
            if _MAY_OPEN.fullmatch(text):
                self._held = text
                return ""
            text = self._begin(text)
        certain = _before_a_fence_at_the_end(text)
        self._held = text[len(certain) :]
        self._said |= bool(certain)
        return certain

    def finish(self) -> str:
        """Return the rest."""
        rest, self._held = self._held, ""
        if not self._begun:
            rest = self._begin(rest)
        closes = rest.strip() == FENCE and ("\n" in rest.partition("`")[0] or not self._said)
        return "" if self._fenced and closes else rest.rstrip()

    def _begin(self, text: str) -> str:
        self._begun = True
        opening = _OPENING.match(text)
        self._fenced = opening is not None
        return text[opening.end() :] if opening else text.lstrip()


def unfenced(text: str) -> str:
    """Return `text` without a code fence around the whole of it, nor white space."""
    unfencing = Unfencing()
    return unfencing.feed(text) + unfencing.finish()


def _before_a_fence_at_the_end(text: str) -> str:
    """Return what comes before white space, a fence or a part of one at the end of `text`."""
    words = text.rstrip()
    without = words.rstrip("`")
    return without.rstrip() if len(words) - len(without) <= len(FENCE) else words
