"""Guesses from the text itself: what followed the last tokens where they stood before.

Answers often repeat: a text that is to be corrected, names, the keys of a table, words read off a
picture before. Knows nothing of the model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from gemma3vl_app.engine.sequence import Sequence as Running
from gemma3vl_app.engine.speculation.policy import MOST_GUESSED
from gemma3vl_app.prompting.prompt import Ids, PreparedPrompt

_GRAM = 3  # tokens that have to match: fewer are found everywhere, and mean little
_COMPARED = 8  # places that are compared, the newest first
_LONGEST = 32  # tokens; longer matches are all the same
_NOTHING = -1  # stands for a token that is never guessed


class Grams:
    """Where each few tokens in a row stand in one growing text: found without reading it again.

    The prompt's are sorted once, the answer's are noted as they come: some 60 bytes a token.
    """

    def __init__(self, prompt: Ids) -> None:
        self._ids: list[int] = prompt.tolist()
        self._prompt_tokens = len(prompt)
        keys = _keys(prompt)
        order = np.argsort(keys, kind="stable")
        self._prompt_keys = keys[order]
        self._prompt_ends = order + _GRAM  # where the text goes on
        self._answer_ends: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: int) -> None:
        """Take the next token: what goes on now are the tokens before it."""
        if len(self._ids) >= _GRAM and len(self._ids) > self._prompt_tokens:
            places = self._answer_ends.setdefault(_key(self._ids[-_GRAM:]), [])
            places.append(len(self._ids))
            del places[:-_COMPARED]
        self._ids.append(id)

    def after_match(self, most: int) -> list[int]:
        """Return `most` tokens that followed the longest match of the text's end, or none.

        Where the text ends before, it is taken to go on repeating itself.
        """
        if len(self._ids) < _GRAM:
            return []
        best, longest = 0, _GRAM - 1
        for end in self._places(_key(self._ids[-_GRAM:])):
            if (length := self._matching(end)) > longest:
                best, longest = end, length
        period = len(self._ids) - best
        return [self._ids[best + step % period] for step in range(most)] if best else []

    def _places(self, key: int) -> list[int]:
        """Return where a text with this key went on, the newest place first."""
        low = int(np.searchsorted(self._prompt_keys, key, "left"))
        high = int(np.searchsorted(self._prompt_keys, key, "right"))
        # One more, as the last may be the end of the text itself
        ends = self._prompt_ends[max(low, high - _COMPARED - 1) : high].tolist()
        ends += self._answer_ends.get(key, [])
        return [end for end in reversed(ends) if end < len(self._ids)][:_COMPARED]

    def _matching(self, end: int) -> int:
        """Return how many tokens before `end` are those at the end of the text."""
        here = self._ids
        length = 0
        while length < min(end, _LONGEST) and here[end - 1 - length] == here[-1 - length]:
            length += 1
        return length


_BASE = 1 << 20  # more than there are ids: three of them make one number below 2 to the 63


def _key(ids: Sequence[int]) -> int:
    first, second, third = ids
    return ((first + 1) * _BASE + second + 1) * _BASE + third + 1


def _keys(ids: Ids) -> Ids:
    """Return the key of every few tokens in a row: int64 (L - 2,)."""
    if len(ids) < _GRAM:
        return np.empty(0, dtype=np.int64)
    shifted = ids + 1
    keys: Ids = (shifted[:-2] * _BASE + shifted[1:-1]) * _BASE + shifted[2:]
    return keys


class Lookup:
    """Guesses tokens by `Grams` of each sequence's prompt and answer.

    Tokens of `never` are not guessed: stop and control tokens, and what stands for pictures.
    """

    token_sec = 0.0  # what it takes is nothing beside a pass

    def __init__(self, never: Collection[int]) -> None:
        self._never = frozenset(never)
        self._grams: dict[Running, Grams] = {}
        self._found: dict[Running, list[int]] = {}

    def begin_pass(self) -> None:
        """Nothing: looking up takes no time."""

    def available(self, sequence: Running) -> int:
        """Return how many tokens can be guessed now."""
        grams = self._grams.get(sequence)
        if grams is None:
            grams = self._grams[sequence] = Grams(self._known(sequence.request.prompt))
        done = len(grams) - len(sequence.request.prompt)
        for id in sequence.generated[done:]:
            grams.add(_NOTHING if id in self._never else id)
        found = grams.after_match(MOST_GUESSED)
        if _NOTHING in found:
            del found[found.index(_NOTHING) :]
        self._found[sequence] = found
        return len(found)

    def propose(self, wanted: Sequence[tuple[Running, int]]) -> list[list[int]]:
        """Return the guesses for sequences that were just looked at, each so many tokens."""
        return [self._found[sequence][:count] for sequence, count in wanted]

    def forget(self, sequence: Running) -> None:
        """Let go of what is known of a sequence."""
        self._grams.pop(sequence, None)
        self._found.pop(sequence, None)

    def _known(self, prompt: PreparedPrompt) -> Ids:
        """Return the prompt's ids with `_NOTHING` where a guess must not go."""
        never = np.isin(prompt.ids, sorted(self._never)) | (prompt.token_types > 0)
        known: Ids = np.where(never, _NOTHING, prompt.ids)
        return known
