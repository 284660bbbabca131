"""Attention weights of chosen positions, and attention followed down through all layers.

Equal to eager transformers' weights. Shapes: n new tokens, R asked tokens, L tokens in all, H
heads, D head width.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from gemma3vl_app.engine.aside import Aside
from gemma3vl_app.engine.attention import Batch, attend_row
from gemma3vl_app.engine.kv import SequenceKV, first_visible
from gemma3vl_app.engine.traces.tape import Tape
from gemma3vl_app.engine.traces.tracing import Tools, Tracing, numbers
from gemma3vl_app.errors import ConversationError, MemoryLimitError
from gemma3vl_app.prompting.prompt import Ids
from gemma3vl_app.traces import Attention, TracedAttention

MAX_BYTES = 1 << 28  # of the result: fp32 (R, L)
_CHUNK_TOKENS = 64  # of the answer, in one pass
_MAX_CELLS = 1 << 25  # heads x queries x keys at once: 128 MB of weights


def known_tokens(tracing: Tracing, asked: Attention) -> int:
    """Return how much of the prompt is to be computed before, in the ordinary way."""
    # Rollout goes through every position; the first token attends to nothing but itself.
    return 1 if asked.rollout else tracing.answer_start - 1


def trace(
    tracing: Tracing, asked: Attention, tools: Tools
) -> Generator[None, None, TracedAttention]:
    """Return the weights that `asked` asks for."""
    rows = tracing.rows(asked.tokens)
    if 4 * len(rows) * len(tracing.prompt) > MAX_BYTES:
        most = MAX_BYTES // (4 * len(tracing.prompt))
        raise MemoryLimitError(
            f"The attention of {len(rows):,} tokens over {len(tracing.prompt):,} takes too much "
            f"memory. Choose words of at most {most:,} tokens."
        )
    windows = tools.text_model.windows
    if asked.rollout:
        layers = tuple(range(len(windows)))
        weights = yield from _rollout(tracing, rows, tools)
    else:
        layers = _chosen_layers(asked, windows)
        heads = _chosen_heads(asked, tools.text_model.heads)
        weights = yield from _averaged(tracing, rows, layers, heads, tools)
    return TracedAttention(
        tokens=tracing.answer, places=tracing.places, weights=numbers(weights), layers=layers
    )


def _averaged(
    tracing: Tracing,
    rows: list[int],
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    tools: Tools,
) -> Generator[None, None, torch.Tensor]:
    """Run the answer once more, over a copy of what is known; returns weights (R, L)."""
    kv, ids = tools.kv.fork(tools.kv.length), tracing.prompt.ids
    weights = torch.zeros(len(rows), len(ids))
    pace = tools.pace(-(-(max(rows) + 1 - kv.length) // _CHUNK_TOKENS))
    while kv.length <= max(rows):
        start, stop = kv.length, min(kv.length + _CHUNK_TOKENS, max(rows) + 1)
        watched = _Watched(kv, stop - start, layers, heads, rows, weights)
        vectors = tools.text_model.embed(torch.tensor(ids[start:stop])[None])
        vectors = yield from tools.through(vectors, watched)
        if pace.step(vectors):
            yield
    return weights


class _Watched(Batch):
    """A pass of one row that adds the attention of some of its positions to `weights` (R, L)."""

    def __init__(
        self,
        kv: SequenceKV,
        count: int,
        layers: tuple[int, ...],
        heads: tuple[int, ...],
        rows: Sequence[int],
        weights: torch.Tensor,
    ) -> None:
        super().__init__([kv], count)
        self._layers, self._heads = layers, list(heads)
        here = range(kv.length, kv.length + count)
        self._indices = [index for index, row in enumerate(rows) if row in here]
        self._columns = [rows[index] - kv.length for index in self._indices]
        self._weights = weights

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attend as ever, and note the weights; see `Pass.attend`."""
        kv = self.rows[0]
        keys, values = kv.append(layer, key[0], value[0])
        mask = self.mask(kv.windows[layer], query.device)
        if layer in self._layers and self._columns:
            first = first_visible(kv.length, kv.windows[layer])
            seen = None if mask is None else mask[self._columns]
            mean = _mean_weights(query[0][:, self._columns], keys, seen, scaling, self._heads)
            self._weights[self._indices, first : first + mean.shape[1]] += mean / len(self._layers)
        return attend_row(query[0], keys, values, mask, scaling)[None]


def _mean_weights(
    query: torch.Tensor,
    keys: torch.Tensor,
    seen: torch.Tensor | None,
    scaling: float,
    heads: list[int],
) -> torch.Tensor:
    """Return the mean over `heads` of the weights (m, visible), on the CPU.

    Takes query (H, m, D), keys (H_kv, visible, D), and which of them each query sees; None: all.
    """
    group = query.shape[0] // keys.shape[0]
    count, visible = query.shape[1], keys.shape[1]
    total = torch.zeros(count, visible, device=keys.device)
    at_once = max(1, _MAX_CELLS // (count * visible))
    for begin in range(0, len(heads), at_once):
        part = heads[begin : begin + at_once]
        key = keys[[head // group for head in part]]  # (h, visible, D)
        scores = (query[part] @ key.transpose(1, 2)).float() * scaling  # (h, m, visible)
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        total += scores.softmax(-1).sum(0)
    return total.cpu() / len(heads)


def _rollout(
    tracing: Tracing, rows: list[int], tools: Tools
) -> Generator[None, None, torch.Tensor]:
    """Follow attention from `rows` down to the bottom; returns weights (R, L).

    A layer's output is half what it attended to and half what was there before: 0.5 A + 0.5 I.
    """
    pace = tools.pace(2 * len(tools.text_model.windows))  # up, and down
    tape = yield from Tape.record(tracing, max(rows), tools, pace)
    known, count = tools.kv.length, tape.count
    rolled = torch.zeros(len(rows), known + count)
    rolled[torch.arange(len(rows)), rows] = 1
    for layer in reversed(range(len(tape))):
        rolling = _Rolling(tools.kv, count, tape.blocks, rolled)
        tape.run(layer, tape.inputs[layer], rolling)
        rolled = rolling.after
        if pace.step(rolled):
            yield
    return torch.nn.functional.pad(rolled, (0, len(tracing.prompt.ids) - rolled.shape[1]))


class _Rolling(Aside):
    """A pass that takes `before` (R, L), what a layer's outputs weigh, down to its inputs."""

    def __init__(self, kv: SequenceKV, count: int, blocks: Ids, before: torch.Tensor) -> None:
        super().__init__(kv, 1, count, blocks)
        self._known = kv.length
        self.after = before

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Note the weights; what the layer returns is not needed: see `Pass.attend`."""
        keys, first = self.keys(layer, key)[0], self.first(layer)  # (H_kv, visible, D)
        before, heads = self.after, list(range(query.shape[1]))
        moved = torch.zeros_like(before)
        moved[:, : self._known] = before[:, : self._known] / 2  # attends to itself alone
        for queries, seen, mask in self.parts(layer, query.device):
            weights = _mean_weights(query[0][:, queries], keys[:, seen], mask, scaling, heads)
            at = slice(self._known + queries.start, self._known + queries.stop)
            moved[:, first + seen.start : first + seen.stop] += before[:, at] @ weights / 2
        self.after = before / 2 + moved
        return torch.zeros_like(query)


def _chosen_layers(asked: Attention, windows: tuple[int | None, ...]) -> tuple[int, ...]:
    """Return the layers to average, checked: those asked for, or those that see everything."""
    if asked.layers is None:
        return tuple(layer for layer, window in enumerate(windows) if window is None)
    return _checked("layer", asked.layers, len(windows))


def _chosen_heads(asked: Attention, count: int) -> tuple[int, ...]:
    return tuple(range(count)) if asked.heads is None else _checked("head", asked.heads, count)


def _checked(what: str, chosen: tuple[int, ...], count: int) -> tuple[int, ...]:
    if not chosen:
        raise ConversationError(f"No {what} was chosen; choose at least one, or leave it out.")
    for each in chosen:
        if not 0 <= each < count:
            raise ConversationError(
                f"There is no {what} {each}: this model has {count}, numbered from 0."
            )
    return tuple(dict.fromkeys(chosen))
