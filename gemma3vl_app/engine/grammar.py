"""JSON schemas enforced while decoding, by llguidance: at each step, only tokens that can go on.

Shapes: V vocabulary. One `Grammars` per tokenizer (it takes about a second to build), one
`Matcher` per answer.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np
import torch

from gemma3vl_app.engine.memory import trim_heap
from gemma3vl_app.errors import ConversationError, EngineError
from gemma3vl_app.prompting.tokenizer import TextTokenizer

if TYPE_CHECKING:  # a name of its type stubs only
    from llguidance._lib import JsonCompileOptions

# Room for pretty-printing, but bounded: a model that likes white space could go on with it for
# ever.
_OPTIONS: JsonCompileOptions = {"whitespace_flexible": True, "whitespace_pattern": r"\n?[ ]{0,16}"}


class Matcher:
    """The state of one answer inside its schema."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        return bool(self._matcher.is_stopped())

    def constrain(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits (V,) with every token that cannot follow set to minus infinity.

        Tokenizer and logits may differ in length: the demo's tokenizer knows the image token, which
        has no logit, and the vision models have logits for ids that no token has.
        """
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint32)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        bits = bits[: min(self._vocab_size, logits.shape[-1])]
        allowed = torch.zeros(logits.shape[-1], dtype=torch.bool)
        allowed[: bits.size] = torch.from_numpy(bits.astype(bool))
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def accept(self, token_id: int) -> None:
        """Move on by a chosen token; raises `EngineError` where the schema's limits are reached."""
        if not self._matcher.consume_token(token_id):
            raise EngineError(
                "The answer could not be kept inside the JSON schema. Use a simpler schema."
            )

    def begin_with(self, ids: Sequence[int]) -> None:
        """Take an answer's beginning as given; raises `ConversationError` where it does not fit."""
        if ids and not self._matcher.consume_tokens(list(ids)):
            raise ConversationError(
                "The answer to be continued does not fit the schema. Continue it without a schema, "
                "or ask anew."
            )


class Grammars:
    """Turns JSON schemas into matchers for one tokenizer; safe to use from several threads."""

    def __init__(self, tokenizer: TextTokenizer, stop_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = sorted(stop_ids)
        self._lock = threading.Lock()
        self._compiled: llguidance.LLTokenizer | None = None

    def matcher(self, schema: Mapping[str, Any]) -> Matcher:
        """Return a fresh matcher for a JSON schema; a bad schema is a `ConversationError`."""
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), defaults=_OPTIONS
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise ConversationError("The schema is not valid JSON; give a JSON schema.") from error
        tokenizer = self._llguidance_tokenizer()
        matcher = llguidance.LLMatcher(tokenizer, grammar)
        if matcher.is_error():
            reason = matcher.get_error().splitlines()[0]
            raise ConversationError(f"The JSON schema cannot be enforced: {reason}")
        return Matcher(matcher, tokenizer.vocab_size)

    def _llguidance_tokenizer(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._compiled is None:
                self._compiled = llguidance.LLTokenizer(
                    self._tokenizer.raw.to_str(), eos_token=self._stop_ids
                )
                trim_heap()  # 290 MiB that building it took; 30 stay
            return self._compiled
