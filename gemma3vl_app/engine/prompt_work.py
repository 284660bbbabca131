"""What the engine does for a request before it decodes: its prompt, taken from caches or computed.

And what is asked for in place of an answer: scores of given tokens, or a trace. All of it is made
of units, between which the engine's thread does what others wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch

from gemma3vl_app.engine import traces
from gemma3vl_app.engine.disk_cache import DiskCache, Found
from gemma3vl_app.engine.kv import SequenceKV
from gemma3vl_app.engine.model import TextModel
from gemma3vl_app.engine.prefill import Prefill
from gemma3vl_app.engine.prefix import PrefixCache, Snapshot
from gemma3vl_app.engine.sequence import Sequence
from gemma3vl_app.engine.traces import Tracing
from gemma3vl_app.prompting.tokenizer import TextTokenizer

_SCORED_ROWS = 64  # rows of logits at once when scoring: one fp32 row takes about 1 MB


class PromptWork:
    """Gives sequences their keys and values, and the work that is left; on the engine's thread."""

    def __init__(
        self,
        text_model: TextModel,
        prefill: Prefill,
        prefixes: PrefixCache,
        disk: DiskCache | None,
        tokenizer: TextTokenizer,
        *,
        unit_sec: float,
        computed: Callable[[Sequence], None],
        ended: Callable[[Sequence], None],
    ) -> None:
        """`computed` takes a sequence whose answer can begin, `ended` one that wants no answer."""
        self._text_model = text_model
        self._prefill = prefill
        self._prefixes = prefixes
        self._disk = disk
        self._tokenizer = tokenizer
        self._unit_sec = unit_sec
        self._computed = computed
        self._ended = ended

    def start(self, sequence: Sequence) -> None:
        """Give a sequence what is known of its prompt, and the units that compute the rest."""
        request, tokens = sequence.request, len(sequence.request.prompt.ids)
        # A trace takes what is known as it is; others need the logits of the last token.
        uncomputed = 0 if request.tracing is not None else request.score_tokens + 1
        found = self._prefixes.find(request.scope, request.prompt, uncomputed=uncomputed)
        if found is None:
            sequence.kv = SequenceKV(self._text_model.windows, expected_tokens=tokens)
        else:
            kv, sequence.cached_tokens = found
            sequence.kv = kv.fork(sequence.cached_tokens, expected_tokens=tokens)
        stored = None
        if self._disk is not None:
            stored = self._disk.find(
                request.scope, request.prompt, uncomputed=uncomputed, known=sequence.cached_tokens
            )
        sequence.work = self._units(sequence, sequence.kv, stored)

    def keep_prefix(self, sequence: Sequence) -> None:
        """Keep what a sequence has computed so far, for later turns."""
        kv = sequence.kv
        if kv is not None and kv.length:
            key = sequence.computed_prompt().key
            snapshot = Snapshot(sequence.request.scope, key, kv.fork(kv.length))
            self._prefixes.add(snapshot)
            # Once an answer: what is kept at its end holds the prompt as well.
            if self._disk is not None and sequence.generated:
                self._disk.keep_prefix(snapshot)

    def _units(self, sequence: Sequence, kv: SequenceKV, stored: Found | None) -> Generator[None]:
        """Compute the prompt, from `stored` where that can be read, else from `kv`; hand it on."""
        if stored is not None:
            kv = yield from self._loaded(sequence, kv, stored)
        if sequence.request.tracing is not None:
            yield from self._trace(sequence, kv, sequence.request.tracing)
            return
        hidden = yield from self._prefill.run(sequence, kv)  # (score_tokens + 1, D)
        if sequence.request.score_tokens:
            yield from self._score(sequence, hidden)
            return
        sequence.work = None
        self.keep_prefix(sequence)
        # The next step turns it into the first token, together with what the others are to say:
        # reading the output matrix takes as long for one row as for several.
        sequence.prompt_end = hidden[-1]
        self._computed(sequence)

    def _loaded(
        self, sequence: Sequence, kv: SequenceKV, stored: Found
    ) -> Generator[None, None, SequenceKV]:
        """Give a sequence its keys and values from the disk; returns them, or `kv`."""
        assert self._disk is not None
        loaded = yield from self._disk.load(
            stored, expected_tokens=len(sequence.request.prompt.ids), unit_sec=self._unit_sec
        )
        if loaded is None:
            return kv
        sequence.kv, sequence.cached_tokens = loaded, loaded.length
        return loaded

    def _score(self, sequence: Sequence, hidden: torch.Tensor) -> Generator[None]:
        """Deliver the prompt's last n tokens with the log-probabilities from hidden (n + 1, D)."""
        targets = sequence.request.prompt.ids[-sequence.request.score_tokens :].tolist()
        for first in range(0, len(targets), _SCORED_ROWS):
            rows = slice(first, first + _SCORED_ROWS)
            logits = self._text_model.logits(hidden[:-1][rows])  # (rows, V)
            for token_id, row in zip(targets[rows], logits, strict=True):
                sequence.add_token(token_id, row)
            yield
        sequence.work = None
        self._ended(sequence)

    def _trace(self, sequence: Sequence, kv: SequenceKV, tracing: Tracing) -> Generator[None]:
        """Compute what is to be known, and a trace over it; its result goes to whoever asked."""
        if kv.length < len(sequence.request.prompt.ids):
            yield from self._prefill.run(sequence, kv)
            self.keep_prefix(sequence)
        tools = traces.Tools(self._text_model, self._prefill, sequence, kv, self._unit_sec)
        tracing.result = yield from traces.run(tracing, tools, self._tokenizer)
        sequence.work = None
        self._ended(sequence)
