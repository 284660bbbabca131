"""One step of every running answer: feed its newest token, and guesses, and take what comes.

Several answers share a pass over the weights. Knows nothing of queues and prompts. Shapes: B rows
(one an answer), N tokens fed, V vocabulary, D model width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from gemma3vl_app.engine.attention import Batch
from gemma3vl_app.engine.failures import NotANumberError
from gemma3vl_app.engine.model import TextModel
from gemma3vl_app.engine.ragged import Ragged
from gemma3vl_app.engine.sequence import Sequence
from gemma3vl_app.engine.speculation.speculation import Speculation
from gemma3vl_app.generation import FinishReason
from gemma3vl_app.loading.adapters import Adapters

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Keeper:
    """What the owner of the answers does when told how one fares.

    `finish` ends an answer. `failing_alone` turns whatever is raised inside into the failure of
    this one. `pass_failed` makes room where memory ran out in a pass that will be tried again.
    """

    finish: Callable[[Sequence, FinishReason], None]
    failing_alone: Callable[[Sequence], AbstractContextManager[None]]
    pass_failed: Callable[[Exception], None]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the model says of one row's next tokens: one after each token fed.

    `logits` is fp32 (n, V); `peaks` and `likeliest` are the largest of each, and their tokens.
    """

    logits: torch.Tensor
    peaks: list[float]
    likeliest: list[int]


class Decoder:
    """Advances answers over one model; `speculation` guesses, None does not."""

    def __init__(
        self,
        text_model: TextModel,
        adapters: Adapters,
        keeper: Keeper,
        *,
        stop_ids: Collection[int],
        speculation: Speculation | None = None,
    ) -> None:
        self.speculation = speculation
        self._text_model = text_model
        self._adapters = adapters
        self._keeper = keeper
        self._stop_ids = frozenset(stop_ids)

    def step(self, running: list[Sequence]) -> None:
        """Compute at least one token for every answer: one pass for each adapter among them."""
        groups: dict[str | None, list[Sequence]] = {}
        for sequence in running:
            groups.setdefault(sequence.request.adapter, []).append(sequence)
        for rows in groups.values():
            self._decode_group(rows)

    def forget(self, sequence: Sequence) -> None:
        """Let go of what was kept beside an answer that has ended."""
        if self.speculation is not None:
            self.speculation.forget(sequence)

    def _decode_group(self, rows: list[Sequence]) -> None:
        """Advance `rows`, which share an adapter, all in one pass."""
        lengths = [sequence.kv.length for sequence in rows if sequence.kv is not None]
        if self._decoded(rows):
            return
        # The failed pass may have stored its tokens; each row is then tried alone, from before it,
        # and without guesses.
        for sequence, length in zip(rows, lengths, strict=True):
            with self._keeper.failing_alone(sequence):
                assert sequence.kv is not None
                sequence.kv.take_back(length)
                self._decode_rows([sequence], [[]])

    def _decoded(self, rows: list[Sequence]) -> bool:
        """Try to decode `rows` together; False where the pass failed and nothing was taken."""
        try:
            self._decode_rows(rows, self._guesses(rows))
        except Exception as error:
            logger.warning("a step of %d answers failed (%s)", len(rows), type(error).__name__)
            self._keeper.pass_failed(error)
            return False
        return True

    def _guesses(self, rows: list[Sequence]) -> list[list[int]]:
        return [[] for _ in rows] if self.speculation is None else self.speculation.guesses(rows)

    def _decode_rows(self, rows: list[Sequence], guesses: list[list[int]]) -> None:
        """Advance each row by one token, and by those of its guess that the model chooses, too."""
        self._adapters.use(rows[0].request.adapter)
        began = self.speculation.now() if self.speculation is not None else 0.0
        logits = self._next_logits(rows, guesses)  # (N, V)
        peaks, likeliest = (each.tolist() for each in logits.max(-1))  # all rows in one pass
        if self.speculation is not None and all(each.prompt_end is None for each in rows):
            self.speculation.note_pass(len(logits), began)
        for sequence in rows:
            sequence.prompt_end = None  # not before: until here a failed step can be repeated
        start = 0
        for sequence, guess in zip(rows, guesses, strict=True):
            own = slice(start, start + 1 + len(guess))
            start = own.stop
            with self._keeper.failing_alone(sequence):
                predicted = Predictions(logits[own], peaks[own], likeliest[own])
                self._take_tokens(sequence, guess, predicted)

    def _next_logits(self, rows: list[Sequence], guesses: list[list[int]]) -> torch.Tensor:
        """Feed each sequence its newest token, if any, and its guess; returns fp32 logits (N, V).

        The rows of a sequence follow each other: after its newest token, after each guessed one.
        """
        begun = [(s, guess) for s, guess in zip(rows, guesses, strict=True) if s.prompt_end is None]
        vectors = {id(s): s.prompt_end[None] for s in rows if s.prompt_end is not None}  # (1, D)
        if begun:
            fed = [[sequence.generated[-1], *guess] for sequence, guess in begun]
            hidden = self._hidden([sequence for sequence, _ in begun], fed)  # each (n, D)
            vectors.update((id(s), own) for (s, _), own in zip(begun, hidden, strict=True))
        return self._text_model.logits(torch.cat([vectors[id(s)] for s in rows]))

    def _hidden(self, rows: list[Sequence], fed: list[list[int]]) -> tuple[torch.Tensor, ...]:
        """Run the model over new tokens of each sequence; returns its final vectors (n, D)."""
        kvs = [sequence.kv for sequence in rows if sequence.kv is not None]
        counts = [len(each) for each in fed]
        if max(counts) == 1:
            vectors = self._text_model.embed(torch.tensor(fed))  # (B, 1, D)
            return tuple(self._text_model.forward(vectors, Batch(kvs, 1)))
        flat = torch.tensor([[token_id for each in fed for token_id in each]])  # (1, N)
        vectors = self._text_model.embed(flat)  # (1, N, D)
        return torch.split(self._text_model.forward(vectors, Ragged(kvs, counts))[0], counts)

    def _take_tokens(self, sequence: Sequence, guess: list[int], predicted: Predictions) -> None:
        """Choose token after token as long as the guess was right; end the answer where it ends."""
        for row, guessed in enumerate([*guess, None]):
            chosen, reason = self._take_token(sequence, predicted, row)
            if reason is not None or chosen != guessed:
                break
        if guess:
            # What was fed after the last token that counts was fed in vain.
            assert sequence.kv is not None
            sequence.kv.take_back(sequence.kv.length - (len(guess) - row))
            if self.speculation is not None:
                self.speculation.note(sequence, row + (chosen == guessed), len(guess))
        if reason is not None:
            self._keeper.finish(sequence, reason)

    def _take_token(
        self, sequence: Sequence, predicted: Predictions, row: int
    ) -> tuple[int, FinishReason | None]:
        """Choose the token of one row and deliver it; returns it, and why the answer ends there."""
        if not math.isfinite(predicted.peaks[row]):
            raise NotANumberError
        logits = predicted.logits[row]  # (V,)
        token_id = sequence.choose(logits, predicted.likeliest[row])
        if token_id in self._stop_ids:
            return token_id, "stop"
        sequence.add_token(token_id, logits)
        if sequence.complete_text:
            return token_id, "stop"
        if len(sequence.generated) >= sequence.request.max_new_tokens:
            return token_id, "length"
        return token_id, None
