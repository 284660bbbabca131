"""Values of one generation: how to sample, what streams out, what it cost.

Pure data: no torch, no threads. The running counterpart is `gemma3vl_app.stream.Stream`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gemma3vl_app.errors import ConversationError

FinishReason = Literal["stop", "length", "cancelled"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the upright picture


@dataclass(frozen=True)
class Greedy:
    """Always take the most likely token."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw from the distribution after temperature, then top-k, then top-p (transformers' order).

    `top_k=0` and `top_p=1.0` switch a filter off. The same `seed` and prompt give the same answer
    whatever runs beside it, but for rounding: see docs/correctness.md.
    """

    temperature: float = 1.0
    top_k: int = 64
    top_p: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 < self.temperature <= 100):
            raise ConversationError(
                f"temperature is {self.temperature}; it must be above 0 and at most 100. "
                "Use Greedy() for the most likely answer."
            )
        if isinstance(self.top_k, bool) or self.top_k < 0:
            raise ConversationError(f"top_k is {self.top_k}; it must be 0 (off) or more.")
        if not 0 < self.top_p <= 1:
            raise ConversationError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConversationError(f"seed is {self.seed}; it must be between 0 and 2**63 - 1.")


Sampling = Greedy | Sample


@dataclass(frozen=True)
class Alternative:
    """A token the model could have chosen, with its natural-log probability."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Token:
    """One token of an answer; `logprob` (natural log) and `alternatives` only when asked for.

    `text` is what the token added to the stream: empty while a character is still incomplete.
    """

    id: int
    text: str
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Status:
    """Where a request stands: its stage, and `done` of `total` where the stage counts something.

    queued: `done` requests are ahead; vision: pictures encoded; prefill: prompt tokens computed;
    tracing: units of a trace.
    """

    stage: Literal["queued", "vision", "prefill", "tracing", "decoding"]
    done: int = 0
    total: int = 0

    def __str__(self) -> str:
        match self.stage:
            case "queued":
                return f"queued {self.done}"
            case "vision" | "prefill" | "tracing":
                return f"{self.stage} {self.done} of {self.total}"
            case _:
                return self.stage


@dataclass(frozen=True)
class Chunk:
    """One piece of a stream: new text and tokens, or (both empty) only a change of status."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    status: Status = Status("decoding")


@dataclass(frozen=True)
class Usage:
    """Token counts; `cached_tokens` and `image_tokens` are parts of `prompt_tokens`.

    `proposed_tokens` were guessed ahead and checked several at once; `accepted_tokens` of them were
    right, and are part of `completion_tokens`.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds by stage; `ttft_sec` runs from the request to its first token."""

    decode_image_sec: float = 0.0
    vision_sec: float = 0.0
    prefill_sec: float = 0.0
    decode_sec: float = 0.0
    ttft_sec: float = 0.0
    tokens_per_sec: float = 0.0


@dataclass(frozen=True)
class Answer:
    """A finished answer: its text, why it ended, what it cost, and its tokens."""

    text: str
    finish_reason: FinishReason
    usage: Usage = Usage()
    timing: Timing = Timing()
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Preview:
    """What a conversation would cost before anything is computed.

    `crops` holds per picture, in order, the boxes that pan-and-scan would add (none when off).
    `exact` is false where a remote server's tokenizer can only be estimated.
    """

    prompt_tokens: int
    cached_tokens: int
    image_tokens: int
    crops: tuple[tuple[Box, ...], ...]
    context_tokens: int
    exact: bool = True


@dataclass(frozen=True)
class Progress:
    """A step of a long job such as a load: `done` of `total` (0 = unknown) in `unit`."""

    stage: str
    done: int
    total: int
    unit: str
    message: str = ""


Report = Callable[[Progress], None]  # who is told how far a long job is
