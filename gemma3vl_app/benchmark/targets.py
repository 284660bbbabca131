"""How a model as wide as the 4B does against transformers on this machine, and the demo.

Random weights with 12 text layers and the whole tower ("4B-d12"). Each is measured alone, one after
the other: two of them would not fit into a small machine's memory.
"""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma3vl_app.benchmark import baseline, features, quality, speed
from gemma3vl_app.benchmark.baseline import PROMPT_TOKENS, Theirs
from gemma3vl_app.benchmark.models import random_checkpoint
from gemma3vl_app.benchmark.result import Result
from gemma3vl_app.benchmark.speed import PICTURES, PROMPT, SEVERAL, Speed
from gemma3vl_app.loading import base_270m_folder, load_model
from gemma3vl_app.loading.cache import CACHE_VARIABLE

SIZE, LAYERS = "4b", 12
QUALITY_LAYERS = 2
LONGER, LONGEST = 8192, 32_768  # tokens of context
WRITING = f"writing, {PROMPT_TOKENS:,} tokens of context"
_log = logging.getLogger(__name__)


def wide() -> list[Result]:
    """Pictures, prompts and writing against transformers, in 16 and in 4 bits."""
    full = quality.unquantised()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(Path(folder), SIZE, layers=LAYERS)
        with _cache_in(Path(folder)):
            plain, of_plain = _both(checkpoint, full)
            exactness = [_exactness(checkpoint, full)] if full == "bf16" else []
            four, of_four = _both(checkpoint, "int4", pictures=False)  # the same tower
    name = f"4B-d{LAYERS}"
    return [
        _faster(
            f"{name}, one new picture, {full}", plain, PICTURES, of_plain.pictures_per_sec, 1.5
        ),
        *exactness,
        _faster(f"{name}, a prompt, int4", four, PROMPT, of_four.prefill_tokens_per_sec, 1.4),
        _faster(f"{name}, writing, int4", four, WRITING, of_four.tokens_per_sec, 2.8),
        _faster(f"{name}, writing, {full}", plain, WRITING, of_plain.tokens_per_sec, 1.8),
        _faster(
            f"{name}, 8 conversations, int4", four, SEVERAL, of_four.together_tokens_per_sec, 2.0
        ),
        Result(
            name=f"{name}, 8 conversations together, int4",
            value=_value(four, SEVERAL),
            baseline=_value(four, WRITING),
            unit="tokens/s",
            baseline_name="one conversation alone",
            bound="at least",
            target=2.5,
        ),
        *(_longer(name, found, context) for found in (four,) for context in (LONGER, LONGEST)),
    ]


def demo_writing() -> list[Result]:
    """The demo's words against those of transformers over the same weights."""
    ours, theirs = _both("demo", "auto", contexts=(PROMPT_TOKENS,))
    return [_faster("demo, writing", ours, WRITING, theirs.tokens_per_sec, 1.5)]


def fewer_bits() -> list[Result]:
    """What 4 bits and an 8-bit output matrix cost, against nf4 with the output matrix as it is."""
    ids = quality.text_ids()
    results = _divergences("270M", base_270m_folder(), ids)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(Path(folder), SIZE, layers=QUALITY_LAYERS)
        with _cache_in(Path(folder)):
            name = f"random weights of the 4B's width, {QUALITY_LAYERS} layers"
            results += _divergences(name, checkpoint, ids)
    return results


def _divergences(name: str, source: Path, ids: list[int]) -> list[Result]:
    theirs = quality.divergence(source, "nf4", ids, fast_paths=False)
    return [
        Result(
            name=f"divergence of the next token from bf16, {name}, {weights}, int8 output matrix",
            value=quality.divergence(source, weights, ids),
            baseline=theirs,
            unit="nats",
            baseline_name="nf4, output matrix in bf16",
            bound="at most",
            target=1.25,
        )
        for weights in ("int4", "nf4")
    ]


def _both(
    source: str | Path,
    weights: str,
    contexts: tuple[int, ...] = (PROMPT_TOKENS, LONGER, LONGEST),
    *,
    pictures: bool = True,
) -> tuple[Speed, Theirs]:
    """Measure ours, then theirs."""
    loaded = load_model(source, weights=weights)
    plan = loaded.plan
    found = speed.measure(loaded, contexts=contexts, pictures=pictures, say=_log.info)
    del loaded
    gc.collect()
    theirs = baseline.load_theirs(source, plan, {})
    reached = baseline.measure_transformers(theirs, _log.info, pictures=pictures)
    del theirs
    gc.collect()
    return found, reached


def _faster(name: str, ours: Speed, figure: str, theirs: float, target: float) -> Result:
    found = next(each for each in ours.figures if each.name == figure)
    return Result(
        name=name,
        value=found.value,
        baseline=theirs,
        unit=found.unit,
        baseline_name="transformers",
        bound="at least",
        target=target,
        details={"share_of_ceiling": found.share},
    )


def _exactness(checkpoint: Path, weights: str) -> Result:
    """Measure how much is lost of a picture by computing in 16 bits."""
    _log.info("a picture in 32 bits")
    ours, theirs = features.errors(checkpoint, weights)
    return Result(
        name=f"4B-d{LAYERS}, one new picture, relative error against fp32",
        value=100 * ours,
        baseline=100 * theirs,
        unit="%",
        baseline_name=f"transformers, {weights}",
        bound="at most",
        target=2.0,
    )


def _longer(name: str, found: Speed, context: int) -> Result:
    return Result(
        name=f"{name}, a step after {context:,} tokens, int4",
        value=found.sec_per_token[context],
        baseline=found.sec_per_token[PROMPT_TOKENS],
        unit="s",
        baseline_name=f"after {PROMPT_TOKENS} tokens",
        bound="at most",
        target=1.4 if context == LONGER else 2.2,
    )


def _value(found: Speed, figure: str) -> float:
    return next(each.value for each in found.figures if each.name == figure)


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Keep converted weights in `folder`: they are many GiB, and nobody needs them afterwards."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE_VARIABLE]
        else:
            os.environ[CACHE_VARIABLE] = before
