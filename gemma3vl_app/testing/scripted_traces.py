"""What the scripted backend says of how its answers came about: made up, and always the same.

It has looked at the left upper quarter of every picture, and at nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Alternative
from gemma3vl_app.messages import Conversation
from gemma3vl_app.traces import (
    Attention,
    Distributions,
    Floats,
    LogitLens,
    Occlusion,
    Place,
    Saliency,
    Trace,
    TracedAttention,
    TracedDistributions,
    TracedLayers,
    TracedOcclusion,
    TracedSaliency,
    TracedToken,
)

_LOST = 1.0  # nats, for a region that begins in the left upper quarter


def steps_of(asked: Trace[Any]) -> int:
    """Return how many steps a trace claims to take."""
    return len(asked.regions) if isinstance(asked, Occlusion) else 1


def places_of(conversation: Conversation, image_tokens: int) -> tuple[Place, ...]:
    """Return where the pictures would stand in a prompt that begins with them; always squares."""
    size = math.isqrt(image_tokens) ** 2
    return tuple(
        Place(number, None, number * size, (number + 1) * size)
        for number in range(len(conversation.pictures))
    )


def traced(
    conversation: Conversation,
    tokens: tuple[TracedToken, ...],
    places: tuple[Place, ...],
    asked: Trace[Any],
    logprob: float,
) -> Any:
    """Return the result of a trace; every token of the answer has `logprob`."""
    told: dict[str, Any] = {"tokens": tokens, "places": places}
    match asked:
        case Attention():
            row = np.concatenate([*(_looked_at(place) for place in places), np.ones(1)])
            weights = np.tile(row / row.sum(), (len(asked.tokens), 1)).astype(np.float32)
            return TracedAttention(weights=weights, layers=(0,), **told)
        case Saliency():
            maps = tuple(_looked_at(place) for place in places)
            return TracedSaliency(soft_tokens=maps, **told)
        case Occlusion():
            return TracedOcclusion(**_with_hidden(conversation, asked, logprob), **told)
        case Distributions():
            return TracedDistributions(**_expected(tokens, asked.top, logprob), **told)
        case LogitLens():
            said = tuple(_alternatives(tokens[n], 1, logprob)[0] for n in asked.tokens)
            logprobs = np.full((1, len(said)), logprob, dtype=np.float32)
            return TracedLayers(likeliest=(said,), logprobs=logprobs, kinds=("global",), **told)
    raise ConversationError(f"The script knows no {type(asked).__name__}.")


def _looked_at(place: Place) -> Floats:
    side = math.isqrt(place.stop - place.start)
    cells = np.zeros((side, side), dtype=np.float32)
    cells[: (side + 1) // 2, : (side + 1) // 2] = 1
    return cells.reshape(-1)


def _with_hidden(conversation: Conversation, asked: Occlusion, logprob: float) -> dict[str, Any]:
    picture = conversation.pictures[asked.picture]
    shown = np.full(len(asked.tokens), logprob, dtype=np.float32)
    lost = [
        _LOST if left < picture.width // 2 and top < picture.height // 2 else 0.0
        for left, top, *_ in asked.regions
    ]
    return {"shown": shown, "hidden": shown[None] - np.asarray(lost, dtype=np.float32)[:, None]}


def _expected(tokens: tuple[TracedToken, ...], top: int, logprob: float) -> dict[str, Any]:
    end = TracedToken(len(tokens), "")
    return {
        "logprobs": np.full(len(tokens), logprob, dtype=np.float32),
        "entropies": np.ones(len(tokens) + 1, dtype=np.float32),
        "alternatives": tuple(_alternatives(token, top, logprob) for token in (*tokens, end)),
    }


def _alternatives(token: TracedToken, top: int, logprob: float) -> tuple[Alternative, ...]:
    """Return the token itself as the likeliest, and others after it."""
    others = (Alternative(token.id + k, f"other{k}", logprob - k) for k in range(1, top))
    return (Alternative(token.id, token.text, logprob), *others)
