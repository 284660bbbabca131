"""How servers that speak OpenAI's protocol differ, as a table; see docs/remote.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["gemma3vl", "vllm", "sglang", "llama.cpp", "ollama", "transformers", "other"]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What a kind of server takes beyond messages, temperature, top_p, seed, stop and max_tokens.

    `continues` says how an unfinished answer is gone on with: by the two "flags" that vLLM brought
    up, of itself where it comes "last", or not at all. `salted`: caches are kept apart by
    `cache_salt`. `scores`: it tells the prompt's log-probabilities. `cleans`: control tokens in
    people's text do nothing there, so it gets the text as it is. `always` goes into each request.
    """

    title: str
    top_k: bool = False
    continues: Literal["", "flags", "last"] = ""
    salted: bool = False
    scores: bool = False
    crops: bool = False
    cleans: bool = False
    always: Mapping[str, Any] = field(default_factory=dict)


USAGE = {"stream_options": {"include_usage": True}}

DIALECTS: Mapping[Kind, Dialect] = {
    "gemma3vl": Dialect(
        title="gemma3vl serve",
        top_k=True,
        continues="flags",
        crops=True,
        cleans=True,
        always=USAGE,
    ),
    "vllm": Dialect(
        title="vLLM",
        top_k=True,
        continues="flags",
        salted=True,
        scores=True,
        # The usage so far comes with each piece: an answer that is stopped has its cost, too.
        always={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "sglang": Dialect(title="SGLang", top_k=True, continues="flags", always=USAGE),
    "llama.cpp": Dialect(
        title="llama.cpp",
        top_k=True,
        continues="last",
        always={**USAGE, "min_p": 0.0},  # its own default filters beyond top_k and top_p
    ),
    "ollama": Dialect(title="Ollama", always=USAGE),
    "transformers": Dialect(title="transformers serve"),
    "other": Dialect(title="a server that speaks OpenAI's protocol", always=USAGE),
}
