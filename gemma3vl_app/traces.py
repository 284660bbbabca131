"""What can be asked about how a model came to an answer, and what comes back: plain values.

`Backend.trace` takes one of these questions and returns its result; `explain` asks them and draws
what comes back. Knows nothing of torch or of models. Shapes: n tokens of the answer, L tokens of
prompt and answer together, T soft tokens of a picture or crop, S its side in pixels as the model
sees it, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from gemma3vl_app.generation import Alternative, Box

Floats = npt.NDArray[np.float32]
Result = TypeVar("Result")


class Trace(Generic[Result]):
    """A question to `Backend.trace`; subclasses say what is asked, `Result` what it returns."""


@dataclass(frozen=True)
class Place:
    """Where a picture, or one crop of it, stands among the tokens: `start` to `stop` - 1.

    `picture` is its number in the conversation, from 0; `box` the crop's, None for the whole.
    """

    picture: int
    box: Box | None
    start: int
    stop: int


@dataclass(frozen=True)
class TracedToken:
    """A token of the answer, as the model was given it; `text` joined over all is the answer."""

    id: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What every result says: the answer's tokens, and the pictures' places in the prompt."""

    tokens: tuple[TracedToken, ...]
    places: tuple[Place, ...]


# --- attention ---


@dataclass(frozen=True, kw_only=True)
class Attention(Trace["TracedAttention"]):
    """How much each of the answer's tokens, while it was written, attended to what came before.

    The weights are those of the position that predicted the token, averaged over `layers` and
    `heads` (None: the layers that see the whole context; all heads). `rollout` follows attention
    down through all layers to the bottom instead, half of each layer's output counted as the
    residual (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928), and takes neither.
    `tokens` are indices into the answer.
    """

    tokens: tuple[int, ...]
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    rollout: bool = False


@dataclass(frozen=True, kw_only=True)
class TracedAttention(Traced):
    """Attention weights (asked tokens, L), each row summing to 1; `layers` are those averaged."""

    weights: Floats
    layers: tuple[int, ...]


# --- gradients ---


@dataclass(frozen=True, kw_only=True)
class Saliency(Trace["TracedSaliency"]):
    """Gradient x input of the summed log-probability of the answer's `tokens`.

    At the projector's output, one number a soft token; with `through_tower` at the pixels as well.
    """

    tokens: tuple[int, ...]
    through_tower: bool = False


@dataclass(frozen=True, kw_only=True)
class TracedSaliency(Traced):
    """Gradient x input by place: soft tokens (T,), and pixels (S, S) where they were asked for."""

    soft_tokens: tuple[Floats, ...]
    pixels: tuple[Floats, ...] = ()


# --- hiding parts of a picture ---


@dataclass(frozen=True, kw_only=True)
class Occlusion(Trace["TracedOcclusion"]):
    """How likely the answer's `tokens` are while one region of a picture is hidden, for each.

    `regions` are boxes in pixels of picture number `picture`; each is painted in the mean
    colour of the picture, and of the crops it reaches into.
    """

    tokens: tuple[int, ...]
    picture: int
    regions: tuple[Box, ...]


@dataclass(frozen=True, kw_only=True)
class TracedOcclusion(Traced):
    """Log-probabilities of the asked tokens: `shown` (tokens,), `hidden` (regions, tokens)."""

    shown: Floats
    hidden: Floats


# --- how sure ---


@dataclass(frozen=True, kw_only=True)
class Distributions(Trace["TracedDistributions"]):
    """What the model held likely at each of the answer's tokens, and after its last.

    `top` likeliest tokens each; `whole` keeps every token's log-probability too, about 1 MB a row.
    """

    top: int = 5
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class TracedDistributions(Traced):
    """One row for each token of the answer, and one for what would follow it.

    Attributes:
        logprobs: of the answer's tokens, natural log (n,).
        entropies: in nats (n + 1,).
        alternatives: the likeliest tokens, n + 1 times.
        whole: log-probabilities (n + 1, V), or (0, V) where they were not asked for.
    """

    logprobs: Floats
    entropies: Floats
    alternatives: tuple[tuple[Alternative, ...], ...]
    whole: Floats = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))


@dataclass(frozen=True, kw_only=True)
class LogitLens(Trace["TracedLayers"]):
    """What each layer's output would say if it were the last: the final norm and head on it.

    The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"); `tokens` are indices
    into the answer.
    """

    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TracedLayers(Traced):
    """By layer and asked token: the likeliest token, and the log-probability of the real one.

    Attributes:
        likeliest: one row a layer, one entry an asked token.
        logprobs: of the token that was written (layers, asked tokens).
        kinds: "global" or "sliding", a layer.
    """

    likeliest: tuple[tuple[Alternative, ...], ...]
    logprobs: Floats
    kinds: tuple[str, ...]
