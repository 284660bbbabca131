"""One request on its way through the engine: what was asked, what has been computed, what was said.

Holds state and small rules about it; the engine decides what happens when.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field

import torch

from gemma3vl_app.engine.answer_text import AnswerText
from gemma3vl_app.engine.grammar import Matcher
from gemma3vl_app.engine.kv import SequenceKV
from gemma3vl_app.engine.prefix import Scope
from gemma3vl_app.engine.sampling import Sampler
from gemma3vl_app.engine.traces.tracing import Tracing
from gemma3vl_app.generation import (
    Alternative,
    Answer,
    Chunk,
    FinishReason,
    Sampling,
    Timing,
    Token,
    Usage,
)
from gemma3vl_app.prompting.prompt import PreparedPrompt, extended
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.stream import Stream


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """What the engine is asked to do.

    `logprobs` asks for log-probabilities with that many alternatives. `score_tokens` asks for no
    answer at all but for the log-probabilities of the prompt's last `score_tokens` tokens.
    `open_answer` is the text of the answer that the prompt ends in and that is to be continued.
    `tracing` asks for no answer either: `prompt` is then what is to be known before the trace.
    `adapter` is a key of `Adapters.key`, None for the model itself; `scope` has to contain it.
    `caller` is whose turn it takes while several wait.
    """

    prompt: PreparedPrompt
    sampling: Sampling
    max_new_tokens: int = 1024
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    matcher: Matcher | None = None
    adapter: str | None = None
    scope: Scope = ()
    caller: str = ""
    score_tokens: int = 0
    open_answer: str = ""
    tracing: Tracing | None = None


@dataclass
class Clock:
    """Seconds spent in each stage, added up as they pass."""

    submitted: float = field(default_factory=time.perf_counter)
    first_token: float = 0.0
    decode_image_sec: float = 0.0
    vision_sec: float = 0.0
    prefill_sec: float = 0.0

    def timing(self, completion_tokens: int) -> Timing:
        """Return the figures for an answer that ends now."""
        if not self.first_token:
            return Timing(self.decode_image_sec, self.vision_sec, self.prefill_sec)
        decode_sec = time.perf_counter() - self.first_token
        return Timing(
            decode_image_sec=self.decode_image_sec,
            vision_sec=self.vision_sec,
            prefill_sec=self.prefill_sec,
            decode_sec=decode_sec,
            ttft_sec=self.first_token - self.submitted,
            tokens_per_sec=(completion_tokens - 1) / decode_sec if decode_sec > 0 else 0.0,
        )


class Sequence:
    """A request that the engine has accepted, with everything that changes while it runs."""

    def __init__(self, request: Request, stream: Stream, tokenizer: TextTokenizer) -> None:
        self.request = request
        self.stream = stream
        self.clock = Clock()
        self.kv: SequenceKV | None = None
        self.cached_tokens = 0
        self.work: Generator[None] | None = None  # what comes before its first token
        self.prompt_end: torch.Tensor | None = None  # (D,): predicts the first token
        self.generated: list[int] = []
        self.tokens: list[Token] = []
        self.proposed_tokens = 0  # guessed ahead, and how many of those the model chose
        self.accepted_tokens = 0
        self._sampler = Sampler(request.sampling)
        self._tokenizer = tokenizer
        self._pieces = tokenizer.new_decode_stream()
        self._text = AnswerText(request.stop)

    @property
    def complete_text(self) -> bool:
        """Whether a stop string has come, or the schema allows nothing more."""
        matcher = self.request.matcher
        return self._text.stopped or (matcher is not None and matcher.finished)

    def choose(self, logits: torch.Tensor, best_id: int) -> int:
        """Choose the next token by rule and schema; `best_id` is the likeliest of logits (V,)."""
        matcher = self.request.matcher
        if matcher is None:
            return best_id if self._sampler.greedy else self._sampler.choose(logits)
        token_id = self._sampler.choose(matcher.constrain(logits))
        matcher.accept(token_id)
        return token_id

    def add_token(self, token_id: int, logits: torch.Tensor) -> None:
        """Take one token, chosen or given, and deliver what it adds; logits (V,) predicted it."""
        if not self.generated:
            self.clock.first_token = time.perf_counter()
        token = self._describe(token_id, self._pieces.step(token_id), logits)
        self.generated.append(token_id)
        self.tokens.append(token)
        self.stream.put(Chunk(self._text.push(token.text), (token,)))

    def _describe(self, token_id: int, text: str, logits: torch.Tensor) -> Token:
        """Return a token with the log-probabilities the request asked for, from raw logits (V,)."""
        if self.request.logprobs is None:
            return Token(token_id, text)
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(self.request.logprobs)
        alternatives = tuple(
            Alternative(other, self._tokenizer.token_text(other), value)
            for other, value in zip(ids.tolist(), values.tolist(), strict=True)
        )
        return Token(token_id, text, float(logprobs[token_id]), alternatives)

    def to_answer(self, reason: FinishReason) -> Answer:
        """Release the text still held back and return the whole answer; the stream stays open."""
        if held := self._text.finish():
            self.stream.put(Chunk(held))
        return Answer(
            text=self._text.text,
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(self.request.prompt.ids),
                cached_tokens=self.cached_tokens,
                image_tokens=self.request.prompt.image_tokens,
                completion_tokens=len(self.generated),
                proposed_tokens=self.proposed_tokens,
                accepted_tokens=self.accepted_tokens,
            ),
            timing=self.clock.timing(len(self.generated)),
            tokens=tuple(self.tokens),
        )

    def ids_of(self, text: str) -> list[int] | None:
        """Return the generated ids that say exactly `text`, or None where no token ends there.

        Left out: tokens past a stop string, and bytes of a character that never became whole.
        """
        said = ""
        for count, token in enumerate(self.tokens):
            if said == text:
                return self.generated[:count]
            said += token.text
        return list(self.generated) if said == text else None

    def computed_prompt(self) -> PreparedPrompt:
        """Return the prompt and as much of the answer as is in `kv`."""
        prompt = self.request.prompt
        computed = 0 if self.kv is None else self.kv.length
        return extended(prompt, self.generated[: max(0, computed - len(prompt.ids))])
