"""Traces: how an answer came about, computed by the engine's thread in units like everything else.

`known_tokens` says what a trace takes from the caches, `run` computes the rest.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from gemma3vl_app.engine.traces import attention, distributions, occlusion, saliency
from gemma3vl_app.engine.traces.tracing import Tools, Tracing
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.traces import Attention, Distributions, LogitLens, Occlusion, Saliency

__all__ = ["Tools", "Tracing", "known_tokens", "run"]


def known_tokens(tracing: Tracing) -> int:
    """Return how many tokens of the prompt a trace wants computed before, in the ordinary way."""
    match tracing.asked:
        case Attention() as asked:
            return attention.known_tokens(tracing, asked)
        case Saliency() as asked:
            return saliency.known_tokens(tracing, asked)
        case Occlusion() as asked:
            return occlusion.known_tokens(tracing, asked)
        case Distributions() | LogitLens() as asked:
            return distributions.known_tokens(tracing, asked)
    raise TypeError(f"{type(tracing.asked).__name__} is no trace this engine knows")


def run(tracing: Tracing, tools: Tools, tokenizer: TextTokenizer) -> Generator[None, None, Any]:
    """Compute a trace, unit by unit; returns its result."""
    match tracing.asked:
        case Attention() as asked:
            return (yield from attention.trace(tracing, asked, tools))
        case Saliency() as asked:
            return (yield from saliency.trace(tracing, asked, tools))
        case Occlusion() as asked:
            return (yield from occlusion.trace(tracing, asked, tools))
        case Distributions() as asked:
            return (yield from distributions.trace(tracing, asked, tools, tokenizer))
        case LogitLens() as asked:
            return (yield from distributions.trace_layers(tracing, asked, tools, tokenizer))
