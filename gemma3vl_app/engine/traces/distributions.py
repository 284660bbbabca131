"""What the model held likely at each token of an answer: at the end, and after each layer.

Shapes: n tokens of the answer, V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from gemma3vl_app.engine.attention import Batch
from gemma3vl_app.engine.traces.tracing import Tools, Tracing, numbers
from gemma3vl_app.errors import ConversationError, MemoryLimitError
from gemma3vl_app.generation import Alternative
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.traces import Distributions, LogitLens, TracedDistributions, TracedLayers

_ROWS = 64  # of logits at once: one fp32 row takes about 1 MB
_MAX_WHOLE_BYTES = 1 << 30
_MAX_LENS_BYTES = 512 << 20
_MAX_TOP = 100


def known_tokens(tracing: Tracing, asked: Distributions | LogitLens) -> int:
    """Return how much of the prompt is to be computed before: all but what predicts the answer."""
    return tracing.answer_start - 1


def trace(
    tracing: Tracing, asked: Distributions, tools: Tools, tokenizer: TextTokenizer
) -> Generator[None, None, TracedDistributions]:
    """Return a row for each token of the answer, and one for what would follow."""
    model, ids = tools.text_model, tracing.answer_ids
    if not 1 <= asked.top <= _MAX_TOP:
        raise ConversationError(
            f"{asked.top} alternatives were asked for; it must be between 1 and {_MAX_TOP}."
        )
    if asked.whole and (len(ids) + 1) * model.vocab_size * 4 > _MAX_WHOLE_BYTES:
        most = _MAX_WHOLE_BYTES // (4 * model.vocab_size) - 1
        raise MemoryLimitError(
            f"An answer of {len(ids):,} tokens is too long to keep whole distributions of: at most "
            f"{most:,}. Use the beginning of the answer."
        )
    pace = tools.pace(-(-(len(ids) + 1) // _ROWS))
    logprobs: list[float] = []
    entropies: list[torch.Tensor] = []
    alternatives: list[tuple[Alternative, ...]] = []
    whole = np.empty((len(ids) + 1 if asked.whole else 0, model.vocab_size), dtype=np.float32)
    kv, first = tools.kv.fork(tools.kv.length), tools.kv.length
    while kv.length < len(tracing.prompt.ids):
        start, stop = kv.length, min(kv.length + _ROWS, len(tracing.prompt.ids))
        vectors = model.embed(torch.tensor(tracing.prompt.ids[start:stop])[None])
        vectors = yield from tools.through(vectors, Batch([kv], stop - start))
        rows = model.logits(model.norm(vectors)[0]).log_softmax(-1)  # (rows, V)
        entropies.append(-(rows.exp() * rows).nan_to_num(0.0).sum(-1))
        alternatives += _likeliest(rows, asked.top, tokenizer)
        done = len(logprobs)
        logprobs += [float(row[id]) for row, id in zip(rows, ids[done:], strict=False)]
        if asked.whole:
            whole[start - first : stop - first] = rows.cpu().numpy()
        if pace.step(rows):
            yield
    return TracedDistributions(
        tokens=tracing.answer,
        places=tracing.places,
        logprobs=np.asarray(logprobs, dtype=np.float32),
        entropies=numbers(torch.cat(entropies)),
        alternatives=tuple(alternatives),
        whole=whole,
    )


def trace_layers(
    tracing: Tracing, asked: LogitLens, tools: Tools, tokenizer: TextTokenizer
) -> Generator[None, None, TracedLayers]:
    """Return what each layer's output would say of the asked tokens."""
    model = tools.text_model
    asked_rows = tracing.rows(asked.tokens)
    # Asked tokens may come in any order; passes see them in the answer's order.
    order = sorted(range(len(asked_rows)), key=asked_rows.__getitem__)
    rows = [asked_rows[each] for each in order]
    kv, stop = tools.kv.fork(tools.kv.length), rows[-1] + 1
    layers = len(model.windows)
    if layers * len(rows) * model.token_bytes > _MAX_LENS_BYTES:
        most = _MAX_LENS_BYTES // (layers * model.token_bytes)
        raise MemoryLimitError(
            f"{len(rows):,} tokens are too many to look at layer by layer: at most {most:,}. "
            "Choose fewer words."
        )

    # 1) The answer once more; each layer's output at the asked positions stays
    kept: list[list[torch.Tensor]] = [[] for _ in range(layers)]  # (rows, D) by layer
    while kv.length < stop:
        start, end = kv.length, min(kv.length + _ROWS, stop)
        here = [row - start for row in rows if start <= row < end]

        def keep(number: int, vectors: torch.Tensor, here: list[int] = here) -> None:
            kept[number].append(vectors[0, here])

        vectors = model.embed(torch.tensor(tracing.prompt.ids[start:end])[None])
        yield from tools.through(vectors, Batch([kv], end - start), keep)

    # 2) Each as if it were the last
    targets = [tracing.answer_ids[asked.tokens[each]] for each in order]
    back = np.argsort(order)
    pace = tools.pace(layers * -(-len(rows) // _ROWS))
    likeliest: list[tuple[Alternative, ...]] = []
    logprobs = []
    for parts in kept:
        best: list[Alternative] = []
        found: list[float] = []
        for first in range(0, len(rows), _ROWS):
            part = torch.cat(parts)[first : first + _ROWS]
            logits = model.logits(model.norm(part)).log_softmax(-1)  # (rows, V)
            best += [each[0] for each in _likeliest(logits, 1, tokenizer)]
            each_target = zip(logits, targets[first : first + _ROWS], strict=True)
            found += [float(row[target]) for row, target in each_target]
            if pace.step(logits):
                yield
        likeliest.append(tuple(best[each] for each in back))
        logprobs.append([found[each] for each in back])
    return TracedLayers(
        tokens=tracing.answer,
        places=tracing.places,
        likeliest=tuple(likeliest),
        logprobs=np.asarray(logprobs, dtype=np.float32),
        kinds=tuple("global" if window is None else "sliding" for window in model.windows),
    )


def _likeliest(
    logprobs: torch.Tensor, count: int, tokenizer: TextTokenizer
) -> list[tuple[Alternative, ...]]:
    """Return the `count` likeliest tokens of each row (rows, V)."""
    values, ids = logprobs.topk(count, dim=-1)
    return [
        tuple(
            Alternative(id, tokenizer.token_text(id), value)
            for id, value in zip(each_ids, each_values, strict=True)
        )
        for each_ids, each_values in zip(ids.tolist(), values.tolist(), strict=True)
    ]
