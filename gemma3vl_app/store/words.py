"""Titles, and text as it is searched: one line, without regard to case in any language."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable

TITLE_CHARACTERS = 60
LONGEST_TITLE = 200  # that a person may give
QUERY_CHARACTERS = 200
_BEFORE, _AFTER = 30, 60  # characters of a snippet around what matched

# White space, controls, what changes the direction of the text around it, and half characters.
_GAP = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
_JOINER = "\u200d"


def plain(text: str) -> str:
    """Return `text` as one line that can do nothing to the text around it."""
    return _GAP.sub(" ", text).strip()


def fold(text: str) -> str:
    """Return `text` as it is compared: without case, and one spelling for equal characters.

    The four letters i of Turkish are one: which is the small one of which depends on the language.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.replace("i\u0307", "i").replace("\u0131", "i")


def query_words(query: str) -> tuple[str, ...]:
    """Return the folded words of what a person searches for, each once."""
    return tuple(dict.fromkeys(fold(plain(query[:QUERY_CHARACTERS])).split()))


def find(text: str, word: str) -> tuple[int, int] | None:
    """Return where in `text` the folded `word` stands first, None where it does not."""
    at = fold(text).find(word)
    if at < 0:
        return None
    # Folding changes lengths ("ß" is "ss"): look for the place that folds to `at`.
    start = bisect_right(range(len(text) + 1), at, key=lambda n: len(fold(text[:n]))) - 1
    for end in range(start + 1, min(len(text), start + 3 * len(word) + 10) + 1):
        if word in fold(text[start:end]):
            return start, end
    return None


def snippet(text: str, word: str) -> tuple[str, int, int]:
    """Return a piece of the plain `text` around the folded `word`, and where in it that stands."""
    start, end = find(text, word) or (0, 0)
    left, right = max(0, start - _BEFORE), min(len(text), end + _AFTER)
    before = ("…" if left else "") + text[left:start]
    after = text[end:right] + ("…" if right < len(text) else "")
    matched = text[start:end]
    return before + matched + after, len(before), len(before) + len(matched)


def title_of(said: Iterable[str]) -> str:
    """Return the first words of a user's messages, "" where there are none."""
    return shortened(next(filter(None, map(plain, said)), ""), TITLE_CHARACTERS)


def shortened(text: str, limit: int) -> str:
    """Return the plain `text`, cut after a word where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    end = text.rfind(" ", limit // 2, limit)
    if end < 0:  # one long word, or a script without spaces
        end = limit - 1
        while end > 1 and _goes_on(text, end):
            end -= 1
    return text[:end].rstrip(" ,.;:") + "…"


def _goes_on(text: str, at: int) -> bool:
    """Whether the character at `at` belongs to the one before it: an accent, a joined emoji."""
    return unicodedata.category(text[at])[0] == "M" or _JOINER in text[at - 1 : at + 1]
