"""Checks of the options of `Backend.stream` that every backend makes; each raises by name."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from gemma3vl_app.errors import ConversationError

MAX_ALTERNATIVES = 20  # as in OpenAI's protocol
_MAX_STOP_STRINGS = 16
_MAX_STOP_CHARS = 128


def whole_number(name: str, value: Any, low: int, high: int | None) -> int:
    """Return a whole number after checking its range, or say what it must be."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ConversationError(f"{name} is {value!r}; it must be a whole number.") from error
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ConversationError(f"{name} is {value!r}; it must be {bounds}.")
    return number


def checked_logprobs(logprobs: int | None) -> int | None:
    """Return how many alternatives are asked for, None for no log-probabilities at all."""
    return None if logprobs is None else whole_number("logprobs", logprobs, 0, MAX_ALTERNATIVES)


def checked_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """Return stop strings, one alone as a tuple of it."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > _MAX_STOP_STRINGS:
        raise ConversationError(
            f"{len(strings)} stop strings were given; at most {_MAX_STOP_STRINGS} are allowed."
        )
    for string in strings:
        if not isinstance(string, str) or not 0 < len(string) <= _MAX_STOP_CHARS:
            raise ConversationError(
                f"Each stop string must have between 1 and {_MAX_STOP_CHARS} characters."
            )
    return strings
