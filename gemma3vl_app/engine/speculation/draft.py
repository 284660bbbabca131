"""Guesses by a draft model: a small text model that writes ahead, greedily, what the large checks.

It sees no pictures: what stands for them is left out of its prompt. It keeps keys and values of its
own, bounded in bytes. Shapes: B rows (one an answer), n tokens fed, N in all, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Gemma3ForCausalLM

from gemma3vl_app.engine.attention import Batch
from gemma3vl_app.engine.kv import SequenceKV
from gemma3vl_app.engine.model import TextModel, finish_work
from gemma3vl_app.engine.prefix import PrefixCache, Snapshot
from gemma3vl_app.engine.ragged import Ragged
from gemma3vl_app.engine.sequence import Sequence
from gemma3vl_app.engine.speculation.policy import MOST_GUESSED
from gemma3vl_app.prompting.prompt import PreparedPrompt

BUDGET_BYTES = 1 << 30  # keys and values, half of running answers and half of earlier ones
_BEHIND_TOKENS = 32  # what it may lack of an answer and still guess: read on the way
_UNIT_SEC = 0.1  # how long reading a prompt keeps the answers that run waiting in each step
_FIRST_CHUNK_TOKENS, _LEAST_CHUNK_TOKENS, _MOST_CHUNK_TOKENS = 128, 32, 512
_NEWEST = 0.25  # share of the newest measurement in the mean


@dataclass(eq=False)
class _State:
    """What the draft model has read of one answer: the prompt's text, then `read` in all."""

    prompt: list[int]
    kv: SequenceKV
    read: int  # the tokens of `kv` that are no guesses
    guess: list[int]  # the tokens of `kv` after those, and one more
    reserved_bytes: int  # what `kv` may come to take

    def known(self, sequence: Sequence) -> int:
        """Return how many tokens there are: text of the prompt, and answer."""
        return len(self.prompt) + len(sequence.generated)

    def unread(self, sequence: Sequence) -> list[int]:
        """Return what is to be read, once guesses that were not taken are given up."""
        answered = max(0, self.read - len(self.prompt))
        new = sequence.generated[answered:]
        right = 0
        while right < min(len(new), self.kv.length - self.read) and new[right] == self.guess[right]:
            right += 1
        self.read += right
        self.kv.take_back(self.read)
        self.guess = []
        return [
            *self.prompt[self.read :],
            *sequence.generated[max(0, self.read - len(self.prompt)) :],
        ]


class Draft:
    """Guesses with a text model whose tokens have the same ids; belongs to the engine's thread.

    Tokens of `never` end a guess: stop tokens and other control tokens.
    """

    def __init__(
        self,
        model: Gemma3ForCausalLM,
        never: Collection[int],
        *,
        budget_bytes: int = BUDGET_BYTES,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = TextModel(model)
        self._never = frozenset(never)
        self._clock = clock
        self._running_bytes = budget_bytes // 2
        self._kept = PrefixCache(budget_bytes // 2)
        self._states: dict[Sequence, _State | None] = {}  # None: it has no room for that one
        self._token_sec = 0.0
        self._may_read = True
        self._tokens_per_sec = _FIRST_CHUNK_TOKENS / _UNIT_SEC

    @property
    def token_sec(self) -> float:
        """Seconds that one more guessed token of every answer takes; 0 before the first."""
        return self._token_sec

    @property
    def bytes(self) -> int:
        """Bytes that keys and values of the running answers may come to take."""
        return sum(each.reserved_bytes for each in self._states.values() if each)

    def begin_pass(self) -> None:
        """Read a piece of one long prompt in each pass, however many wait."""
        self._may_read = True

    def available(self, sequence: Sequence) -> int:
        """Return how many tokens can be guessed; reads a piece of a long prompt where one waits."""
        if sequence not in self._states:
            self._states[sequence] = self._begin(sequence)
        state = self._states[sequence]
        if state is None:
            return 0
        if self._may_read and state.known(sequence) - state.read > _BEHIND_TOKENS:
            self._may_read = False
            self._read(state, state.unread(sequence))
        if state.known(sequence) - state.read > _BEHIND_TOKENS:
            return 0
        return max(0, min(MOST_GUESSED, self._model.context_tokens - state.known(sequence)))

    def propose(self, wanted: Several[tuple[Sequence, int]]) -> list[list[int]]:
        """Return what the draft model would say next, at most so many tokens for each answer."""
        began, steps = self._clock(), 0
        rows = [(self._state(sequence), count) for sequence, count in wanted]
        fed = [
            state.unread(sequence) for (state, _), (sequence, _) in zip(rows, wanted, strict=True)
        ]
        for (state, _), new in zip(rows, fed, strict=True):
            state.read += len(new)
        while rows:
            steps += 1
            said = self._next([state.kv for state, _ in rows], fed)
            for (state, _), token_id in zip(rows, said, strict=True):
                state.guess.append(token_id)
            rows = [
                (state, count)
                for state, count in rows
                if len(state.guess) < count and state.guess[-1] not in self._never
            ]
            fed = [[state.guess[-1]] for state, _ in rows]
        each_sec = (self._clock() - began) / steps
        self._token_sec += (_NEWEST if self._token_sec else 1.0) * (each_sec - self._token_sec)
        return [self._without_end(self._state(sequence).guess) for sequence, _ in wanted]

    def forget(self, sequence: Sequence) -> None:
        """Let go of an answer that has ended; what was read is kept for the next turn."""
        state = self._states.pop(sequence, None)
        if state is None:
            return
        length = min(state.read, state.kv.length)  # less where a pass failed on its way
        if length == 0:
            return
        state.kv.take_back(length)
        ids = np.array([*state.prompt, *sequence.generated][:length], dtype=np.int64)
        key = PreparedPrompt(ids).key
        self._kept.add(Snapshot(sequence.request.scope, key, state.kv.fork(length)))

    def _state(self, sequence: Sequence) -> _State:
        state = self._states[sequence]
        assert state is not None
        return state

    def _begin(self, sequence: Sequence) -> _State | None:
        """Return what is known of a new answer's prompt, or None where memory is too short."""
        prompt = sequence.request.prompt
        text = prompt.ids[prompt.token_types == 0]
        tokens = len(text) + sequence.request.max_new_tokens
        needed_bytes = self._bytes_of(min(tokens, self._model.context_tokens))
        if self.bytes + needed_bytes > self._running_bytes or len(text) == 0:
            return None
        found = self._kept.find(sequence.request.scope, PreparedPrompt(text))
        if found is None:
            kv = SequenceKV(self._model.windows, expected_tokens=len(text), spare=MOST_GUESSED)
        else:
            kv = found[0].fork(found[1], expected_tokens=len(text))
        return _State(text.tolist(), kv, kv.length, [], needed_bytes)

    def _bytes_of(self, tokens: int) -> int:
        """Return about the bytes of keys and values that so many tokens take at most."""
        windows = self._model.windows
        kept = (tokens if window is None else min(tokens, 3 * window) for window in windows)
        return sum(kept) * self._model.key_bytes

    def _read(self, state: _State, unread: list[int]) -> None:
        """Read the next piece of a prompt, in about one unit of time."""
        began = self._clock()
        fits = int(self._tokens_per_sec * _UNIT_SEC)
        count = min(max(fits, _LEAST_CHUNK_TOKENS), _MOST_CHUNK_TOKENS, len(unread) - 1)
        vectors = self._model.embed(torch.tensor([unread[:count]]))  # (1, n, D)
        finish_work(self._model.forward(vectors, Batch([state.kv], count)))
        state.read += count
        rate = count / max(self._clock() - began, 1e-9)
        self._tokens_per_sec += _NEWEST * (rate - self._tokens_per_sec)

    def _next(self, kvs: list[SequenceKV], fed: list[list[int]]) -> list[int]:
        """Feed new tokens of each answer; returns the likeliest next one of each."""
        counts = [len(each) for each in fed]
        if max(counts) == 1:
            vectors = self._model.embed(torch.tensor(fed))  # (B, 1, D)
            last = self._model.forward(vectors, Batch(kvs, 1))[:, -1]  # (B, D)
        else:
            flat = torch.tensor([[token_id for each in fed for token_id in each]])  # (1, N)
            hidden = self._model.forward(self._model.embed(flat), Ragged(kvs, counts))[0]
            last = torch.stack([own[-1] for own in torch.split(hidden, counts)])  # (B, D)
        return [int(token_id) for token_id in self._model.logits(last).argmax(-1).tolist()]

    def _without_end(self, guess: list[int]) -> list[int]:
        return guess[:-1] if guess[-1] in self._never else list(guess)
