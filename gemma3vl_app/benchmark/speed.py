"""How fast one model is on this machine: each figure with its share of what the machine can do.

Our engine, and on wish transformers' own `generate` over the same weights in the same run. Words do
not matter here, so nothing stops an answer early.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from gemma3vl_app.benchmark import ceilings, weights
from gemma3vl_app.benchmark.baseline import (
    DECODED,
    PROMPT_TOKENS,
    REPEATS,
    SETTLED,
    TOGETHER,
    TOGETHER_TOKENS,
    Theirs,
)
from gemma3vl_app.benchmark.models import WORD, filler, noise_picture
from gemma3vl_app.engine.attention import Batch
from gemma3vl_app.engine.engine import Engine
from gemma3vl_app.engine.kv import SequenceKV, first_visible
from gemma3vl_app.engine.model import TextModel, finish_work
from gemma3vl_app.engine.sequence import Request
from gemma3vl_app.generation import Greedy
from gemma3vl_app.loading.assembly import Model, arithmetic_of
from gemma3vl_app.loading.loader import LoadedModel
from gemma3vl_app.messages import Conversation
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.prompt import PreparedPrompt
from gemma3vl_app.prompting.tokenizer import TextTokenizer

CONTEXTS = (512, 2048, 8192)

PICTURES = "new pictures, tower and projector"
PROMPT = f"reading a prompt of {PROMPT_TOKENS} tokens"
SEVERAL = f"writing, {TOGETHER} conversations together"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One speed: `value` in `unit`, the larger the better.

    `share` is that of the machine's ceiling, `limit` says which; 0 and "" where there is none.
    `baseline` is what transformers reached, None where it was not asked.
    """

    name: str
    value: float
    unit: str
    share: float = 0.0
    limit: str = ""
    baseline: float | None = None

    @property
    def ratio(self) -> float | None:
        """Ours over transformers'."""
        return self.value / self.baseline if self.baseline else None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured of one model: figures, and seconds per token by tokens of context."""

    ceilings: ceilings.Ceilings
    figures: tuple[Figure, ...]
    sec_per_token: dict[int, float]


def measure(
    loaded: LoadedModel,
    *,
    contexts: Sequence[int] = CONTEXTS,
    pictures: bool = True,
    say: Say = lambda what: None,
) -> Speed:
    """Measure a loaded model, which belongs to this from now on; `say` is told what is measured."""
    tokenizer = TextTokenizer.from_file(loaded.tokenizer_file)
    prompt_format = PromptFormat.from_config(loaded.config, loaded.preprocessor, tokenizer)
    say("the machine")
    device = next(loaded.model.parameters()).device
    limits = ceilings.measure(device, arithmetic_of(loaded.model))
    work = weights.count(loaded.model)
    # Without guesses: what a filler says after a filler is guessed too well.
    engine = Engine(loaded.model, tokenizer, prompt_format, stop_ids=())
    try:
        ours = _Ours(loaded.model, engine, tokenizer, prompt_format)
        return _measured(ours, work, limits, contexts, pictures, say)
    finally:
        engine.close()


def beside(found: Speed, theirs: Theirs) -> Speed:
    """Return `found` with what transformers reached beside each figure."""
    reached = {
        PICTURES: theirs.pictures_per_sec,
        PROMPT: theirs.prefill_tokens_per_sec,
        _writing(PROMPT_TOKENS): theirs.tokens_per_sec,
        SEVERAL: theirs.together_tokens_per_sec,
    }
    figures = [replace(each, baseline=reached.get(each.name) or None) for each in found.figures]
    return replace(found, figures=tuple(figures))


def _writing(context: int) -> str:
    return f"writing, {context:,} tokens of context"


def _measured(
    ours: _Ours,
    work: weights.Work,
    limits: ceilings.Ceilings,
    contexts: Sequence[int],
    pictures: bool,
    say: Say,
) -> Speed:
    figures = []
    if work.tower_flop and pictures:
        say("a picture")
        each = 1 / ours.picture_sec()
        figures.append(
            Figure(
                name=PICTURES,
                value=each,
                unit="pictures/s",
                share=each * work.tower_flop / limits.flop_per_sec,
                limit="multiplying",
            )
        )
    say(f"a prompt of {PROMPT_TOKENS} tokens")
    rate = PROMPT_TOKENS / ours.prefill_sec(PROMPT_TOKENS)
    figures.append(
        Figure(
            name=PROMPT,
            value=rate,
            unit="tokens/s",
            share=rate * work.prefill_flop(1) / limits.flop_per_sec,
            limit="multiplying",
        )
    )
    say(f"writing after {PROMPT_TOKENS:,} tokens")
    figures.append(_figure_of_writing(PROMPT_TOKENS, ours.writing_sec(PROMPT_TOKENS), work, limits))
    sec_per_token = {}
    for context in contexts:
        say(f"a step after {context:,} tokens")
        sec_per_token[context] = ours.step_sec(context)
        if context != PROMPT_TOKENS:
            figures.append(_figure_of_writing(context, sec_per_token[context], work, limits))
    say(f"{TOGETHER} conversations together")
    together = ours.together_tokens_per_sec(TOGETHER)
    figures.append(Figure(name=SEVERAL, value=together, unit="tokens/s"))
    return Speed(ceilings=limits, figures=tuple(figures), sec_per_token=sec_per_token)


def _figure_of_writing(
    context: int, sec: float, work: weights.Work, limits: ceilings.Ceilings
) -> Figure:
    token_bytes = work.token_bytes + work.kv_bytes * context
    return Figure(
        name=_writing(context),
        value=1 / sec,
        unit="tokens/s",
        share=token_bytes / sec / limits.read_bytes_per_sec,
        limit="reading memory",
    )


@torch.inference_mode()
def step_sec(model: Model, context: int) -> float:
    """Return the median seconds of one pass for one token after `context` tokens.

    Keys and values are random: computing those of a long prompt would take far longer than what is
    to be measured. The engine's own work between two passes is not in it.
    """
    text = TextModel(model)
    kv = random_kv(text, context)
    times = []
    for _ in range(DECODED):
        began = time.perf_counter()
        hidden = text.forward(text.embed(torch.tensor([[1]])), Batch([kv], 1))
        finish_work(text.logits(hidden[:, 0]))
        times.append(time.perf_counter() - began)
    return statistics.median(times[SETTLED:])


def random_kv(text: TextModel, context: int) -> SequenceKV:
    """Return keys and values of a sequence of `context` tokens, as far as layers keep them."""
    layout = text.layout
    kv = SequenceKV(layout.windows, expected_tokens=context + DECODED)
    kv.length = context
    for layer, (window, device) in enumerate(zip(layout.windows, layout.devices, strict=True)):
        shape = (layout.heads, context - first_visible(context, window), layout.head_dim)
        keys, values = (torch.randn(shape, dtype=layout.dtype, device=device) for _ in range(2))
        kv.restore(layer, first_visible(context, window), keys, values, device)
    return kv


class _Ours:
    """What the engine is timed on; every prompt is new to its caches."""

    def __init__(
        self,
        model: Model,
        engine: Engine,
        tokenizer: TextTokenizer,
        prompt_format: PromptFormat,
    ) -> None:
        self.model = model
        self._engine = engine
        self._tokenizer = tokenizer
        self._format = prompt_format
        self._salt = 0

    def _request(self, prompt: PreparedPrompt, tokens: int) -> Request:
        self._salt += 1
        return Request(
            prompt=prompt, sampling=Greedy(), max_new_tokens=tokens, scope=(None, self._salt)
        )

    def picture_sec(self) -> float:
        """Return the median seconds that a picture takes in tower and projector."""
        seeds = itertools.count()

        def see() -> float:
            talk = Conversation().user(noise_picture(next(seeds)), WORD)
            prompt = prepare(talk, self._tokenizer, self._format)
            answer = self._engine.submit(self._request(prompt, 1)).answer
            return answer.timing.vision_sec

        return ceilings.repeated(see, REPEATS)

    def prefill_sec(self, tokens: int) -> float:
        """Return the median seconds that a prompt takes."""

        def read() -> float:
            request = self._request(filler(self._tokenizer, self._format, tokens), 1)
            return self._engine.submit(request).answer.timing.prefill_sec

        return ceilings.repeated(read, REPEATS)

    def writing_sec(self, context: int) -> float:
        """Return the median seconds between two tokens after a prompt of `context` tokens."""
        request = self._request(filler(self._tokenizer, self._format, context), DECODED)
        stream = self._engine.submit(request)
        arrived = [time.perf_counter() for chunk in stream if chunk.tokens]
        return statistics.median(np.diff(arrived[SETTLED:]).tolist())

    def step_sec(self, context: int) -> float:
        """Return what `step_sec` does, in the thread that computes all else."""
        return self._engine.call(lambda: step_sec(self.model, context))

    def together_tokens_per_sec(self, count: int) -> float:
        """Return the summed speed of several answers that are written side by side."""
        rates = []
        for _ in range(REPEATS):
            streams = [
                self._engine.submit(
                    self._request(filler(self._tokenizer, self._format, TOGETHER_TOKENS), DECODED)
                )
                for _ in range(count)
            ]
            rates.append(sum(stream.answer.timing.tokens_per_sec for stream in streams))
        return statistics.median(rates)
