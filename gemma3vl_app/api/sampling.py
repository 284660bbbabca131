"""From the numbers of a request to values of the backend: how to sample, how long, which form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gemma3vl_app.api.failures import RequestError
from gemma3vl_app.api.limits import ApiLimits
from gemma3vl_app.api.requests import MAX_SEED
from gemma3vl_app.backends.protocol import Backend, Capabilities
from gemma3vl_app.generation import Greedy, Sample, Sampling
from gemma3vl_app.schemas import LARGEST_SCHEMA_BYTES, closed

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def sampling(
    default: Sampling,
    *,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
) -> Sampling:
    """Return what a request asks for; what it leaves unsaid is the checkpoint's own `default`."""
    if temperature == 0 or (temperature is None and isinstance(default, Greedy)):
        return Greedy()
    base = default if isinstance(default, Sample) else Sample()
    return replace(
        base,
        temperature=base.temperature if temperature is None else temperature,
        top_p=base.top_p if top_p is None else top_p,
        top_k=base.top_k if top_k is None else max(0, top_k),  # -1 is "off" for vLLM's clients
        seed=base.seed if seed is None else seed,
    )


def nth(sampling: Sampling, choice: int) -> Sampling:
    """Return the sampling of one of several choices: each with a seed of its own."""
    if isinstance(sampling, Sample) and sampling.seed is not None:
        return replace(sampling, seed=(sampling.seed + choice) % (MAX_SEED + 1))
    return sampling


def answer_tokens(
    asked: int | None, capabilities: Capabilities, limits: ApiLimits, param: str
) -> int:
    """Return how long an answer may be; raises `RequestError` above the limit."""
    if asked is None:
        return min(capabilities.answer_tokens, limits.answer_tokens)
    if asked > limits.answer_tokens:
        raise RequestError(
            f"'{param}' is {asked:,}; the limit is {limits.answer_tokens:,}.", param=param
        )
    return asked


def schema(asked: Mapping[str, Any] | None, param: str) -> dict[str, Any]:
    """Return a JSON schema whose objects hold what they name and nothing else."""
    if asked is None:
        return dict(ANY_OBJECT)
    if len(json.dumps(asked)) > LARGEST_SCHEMA_BYTES:
        raise RequestError("The JSON schema is larger than 1 MiB. Simplify it.", param=param)
    return dict(closed(asked))


def adapter_of(model: str, backend: Backend) -> str | None:
    """Return the adapter that a model's name stands for, None for the model itself.

    Raises `RequestError` (404) for a name that is not there.
    """
    if model == backend.capabilities.model:
        return None
    if model in backend.adapters:
        return model
    there = ", ".join(names(backend))
    shown = "".join(c if c.isprintable() else "?" for c in model[:100])
    raise RequestError(
        f"There is no model '{shown}' here. Choose one of: {there}.",
        param="model",
        code="model_not_found",
        status=404,
    )


def names(backend: Backend) -> tuple[str, ...]:
    """Return the names of the model and its adapters, as requests may give them."""
    own = backend.capabilities.model
    return (own, *(name for name in backend.adapters if name != own))
