"""How a GGUF file says tokens are to be chosen, unless somebody asks for another way.

The keys are llama.cpp's (`general.sampling.*`); released files may hold some of them, or none.
"""

from __future__ import annotations

import math
from typing import Any

from gemma3vl_app.errors import ConversationError, LoadError
from gemma3vl_app.generation import Sample
from gemma3vl_app.loading.gguf_header import Reader
from gemma3vl_app.loading.gguf_values import optional

GREEDY_TEMPERATURE = 0.0  # what llama.cpp takes for "always the most likely token"
GOOGLES = Sample(temperature=1.0, top_k=64, top_p=0.95)  # recommended for all of Gemma 3
FP32_DIGITS = 7  # that a number has kept when it is read from fp32: 0.95, and not 0.94999998


def read_sampling(reader: Reader) -> dict[str, Any]:
    """Return the file's sampling as generation_config.json says it; Google's where it is silent.

    Raises `LoadError` for values that nothing can be sampled with.
    """
    temperature = _number(reader, "temp", GOOGLES.temperature)
    if temperature <= GREEDY_TEMPERATURE:
        return {"do_sample": False}
    top_k = int(_number(reader, "top_k", GOOGLES.top_k))
    top_p = _number(reader, "top_p", GOOGLES.top_p)
    try:
        sampling = Sample(temperature=temperature, top_k=max(0, top_k), top_p=top_p)
    except ConversationError as error:
        raise LoadError(f"The GGUF file cannot be sampled from: {error}") from error
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }


def _number(reader: Reader, key: str, otherwise: float) -> float:
    found = optional(reader, f"general.sampling.{key}")
    if found is None:
        return otherwise
    if not isinstance(found, int | float) or not math.isfinite(found):
        raise LoadError(f"The GGUF file's 'general.sampling.{key}' is no number. Copy it again.")
    return float(f"{found:.{FP32_DIGITS}g}")
