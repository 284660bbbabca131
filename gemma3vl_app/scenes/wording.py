"""How the things of a scene are called, and how one question is said in several ways."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gemma3vl_app.scenes.scene import Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_SAME = (("color", "colour"), ("picture", "image"), ("picture", "drawing"), ("large", "big"))
_SWAPPED, _LOWER, _BARE = 0.2, 0.12, 0.12  # shares of questions


def full_name(thing: Thing, *, outline: bool = False) -> str:
    """Return such as "a small red circle", or "a small outlined red circle" where asked for."""
    words: list[str] = [] if thing.size == "medium" else [thing.size]
    words += ["outlined"] if outline and thing.outlined else []
    return article(" ".join([*words, *thing.pair]))


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def article(what: str) -> str:
    """Return `what` with "a" or "an" before it."""
    return f"{'an' if what[0] in 'aeio' else 'a'} {what}"


def listed(parts: Sequence[str]) -> str:
    """Return such as "a, b and c"."""
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def sentence(text: str) -> str:
    """Return `text` as a sentence: a capital at its start, a full stop at its end."""
    return f"{text[0].upper()}{text[1:]}."


def in_other_words(question: str, rng: random.Random) -> str:
    """Say a question as somebody else may type it: "colour", a small letter, no question mark."""
    for word, other in _SAME:
        if rng.random() < _SWAPPED:
            question = question.replace(word, other)
    if rng.random() < _LOWER:
        question = question[0].lower() + question[1:]
    if rng.random() < _BARE:
        question = question.rstrip("?.")
    return question
