"""Text from models, files and their names, made harmless for a terminal."""

from __future__ import annotations

import unicodedata

_KEPT = {"\n", "\t"}


def plain(text: str) -> str:
    """Return `text` with control characters shown as U+FFFD, so that none moves the cursor.

    Escape sequences could otherwise rewrite what stands on the screen or set the clipboard. Line
    breaks and tabs stay; marks that turn the direction of writing do not.
    """
    return "".join(c if c in _KEPT or not _commands(c) else "\ufffd" for c in text)


def _commands(character: str) -> bool:
    """Whether a terminal may act on it: controls, surrogates, and direction marks."""
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTIONS


_DIRECTIONS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
