"""How fast one model is on this machine: each figure with its share of what the machine can do.

Our engine, and on wish transformers' own `generate` over the same weights in the same run. Words do
not matter here, so nothing stops an answer early.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Gemma3ForConditionalGeneration

from gemma3vl_app.benchmark import ceilings, weights
from gemma3vl_app.benchmark.models import WORD, noise_picture
from gemma3vl_app.engine.engine import Engine
from gemma3vl_app.engine.sequence import Request
from gemma3vl_app.generation import Greedy
from gemma3vl_app.loading.loader import LoadedModel
from gemma3vl_app.messages import Conversation
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.pixels import pixels
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.prompt import PreparedPrompt
from gemma3vl_app.prompting.tokenizer import TextTokenizer

PROMPT_TOKENS = 512
CONTEXTS = (512, 2048, 8192)
TOGETHER = 8
TOGETHER_TOKENS = 64  # of each prompt, when several are decoded together
DECODED = 24  # tokens after each prompt
_SETTLED = 4  # first tokens that are not timed
_REPEATS = 3

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
    against_transformers: bool = False,
    say: Say = lambda what: None,
) -> Speed:
    """Measure a loaded model, which belongs to this from now on; `say` is told what is measured."""
    tokenizer = TextTokenizer.from_file(loaded.tokenizer_file)
    prompt_format = PromptFormat.from_config(loaded.config, loaded.preprocessor, tokenizer)
    model: Any = loaded.model  # transformers leaves much unannotated
    head = model.get_output_embeddings().weight
    say("the machine")
    limits = ceilings.measure(head.device, head.dtype)
    work = weights.count(loaded.model)
    theirs = Theirs(0.0, 0.0, 0.0, 0.0)
    if against_transformers:
        theirs = measure_transformers(loaded.model, tokenizer, prompt_format, say)
    engine = Engine(loaded.model, tokenizer, prompt_format, stop_ids=())
    try:
        ours = _Ours(engine, tokenizer, prompt_format)
        return _measured(ours, work, limits, theirs, contexts, say)
    finally:
        engine.close()


def _measured(
    ours: _Ours,
    work: weights.Work,
    limits: ceilings.Ceilings,
    theirs: Theirs,
    contexts: Sequence[int],
    say: Say,
) -> Speed:
    figures = []
    if work.tower_flop:
        say("a picture")
        each = 1 / ours.picture_sec()
        figures.append(
            Figure(
                name="new pictures, tower and projector",
                value=each,
                unit="pictures/s",
                share=each * work.tower_flop / limits.flop_per_sec,
                limit="multiplying",
                baseline=theirs.pictures_per_sec or None,
            )
        )
    say(f"a prompt of {PROMPT_TOKENS} tokens")
    rate = PROMPT_TOKENS / ours.prefill_sec(PROMPT_TOKENS)
    figures.append(
        Figure(
            name=f"reading a prompt of {PROMPT_TOKENS} tokens",
            value=rate,
            unit="tokens/s",
            share=rate * work.prefill_flop(1) / limits.flop_per_sec,
            limit="multiplying",
            baseline=theirs.prefill_tokens_per_sec or None,
        )
    )
    sec_per_token = {}
    for context in contexts:
        say(f"writing after {context:,} tokens")
        sec_per_token[context] = ours.sec_per_token(context)
        token_bytes = work.token_bytes + work.kv_bytes * context
        rate = 1 / sec_per_token[context]
        figures.append(
            Figure(
                name=f"writing, {context:,} tokens of context",
                value=rate,
                unit="tokens/s",
                share=rate * token_bytes / limits.read_bytes_per_sec,
                limit="reading memory",
                baseline=(theirs.tokens_per_sec or None) if context == PROMPT_TOKENS else None,
            )
        )
    say(f"{TOGETHER} conversations together")
    together = ours.together_tokens_per_sec(TOGETHER)
    figures.append(
        Figure(
            name=f"writing, {TOGETHER} conversations together",
            value=together,
            unit="tokens/s",
            baseline=theirs.together_tokens_per_sec or None,
        )
    )
    return Speed(ceilings=limits, figures=tuple(figures), sec_per_token=sec_per_token)


class _Ours:
    """What the engine is timed on; every prompt is new to its caches."""

    def __init__(
        self, engine: Engine, tokenizer: TextTokenizer, prompt_format: PromptFormat
    ) -> None:
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
        times = []
        for seed in range(_REPEATS + 1):
            talk = Conversation().user(noise_picture(seed), WORD)
            prompt = prepare(talk, self._tokenizer, self._format)
            answer = self._engine.submit(self._request(prompt, 1)).answer
            times.append(answer.timing.vision_sec)
        return statistics.median(times[1:])

    def prefill_sec(self, tokens: int) -> float:
        """Return the median seconds that a prompt takes."""
        times = []
        for _ in range(_REPEATS + 1):
            request = self._request(filler(self._tokenizer, self._format, tokens), 1)
            times.append(self._engine.submit(request).answer.timing.prefill_sec)
        return statistics.median(times[1:])

    def sec_per_token(self, context: int) -> float:
        """Return the median seconds between two tokens after a prompt of `context` tokens."""
        request = self._request(filler(self._tokenizer, self._format, context), DECODED)
        stream = self._engine.submit(request)
        arrived = [time.perf_counter() for chunk in stream if chunk.tokens]
        return statistics.median(np.diff(arrived[_SETTLED:]).tolist())

    def together_tokens_per_sec(self, count: int) -> float:
        """Return the summed speed of several answers that are written side by side."""
        rates = []
        for _ in range(_REPEATS):
            streams = [
                self._engine.submit(
                    self._request(filler(self._tokenizer, self._format, TOGETHER_TOKENS), DECODED)
                )
                for _ in range(count)
            ]
            rates.append(sum(stream.answer.timing.tokens_per_sec for stream in streams))
        return statistics.median(rates)


@dataclass(frozen=True)
class Theirs:
    """What transformers reached; 0 where it was not measured."""

    pictures_per_sec: float
    prefill_tokens_per_sec: float
    tokens_per_sec: float
    together_tokens_per_sec: float


@torch.inference_mode()
def measure_transformers(
    model: Any, tokenizer: TextTokenizer, prompt_format: PromptFormat, say: Say
) -> Theirs:
    """Measure transformers' own path (sdpa, its cache, `generate`) over the same weights."""
    model.set_attn_implementation("sdpa")
    device, dtype = model.device, model.get_output_embeddings().weight.dtype
    ids = torch.tensor(filler(tokenizer, prompt_format, PROMPT_TOKENS).ids)[None].to(device)
    few = ids[:, :TOGETHER_TOKENS].expand(TOGETHER, TOGETHER_TOKENS).contiguous()

    picture_sec = 0.0
    if isinstance(model, Gemma3ForConditionalGeneration):
        say("a picture, by transformers")
        prompt = prepare(Conversation().user(noise_picture(0)), tokenizer, prompt_format)
        shown = torch.from_numpy(pixels(prompt.images[0], prompt_format))[None].to(device, dtype)
        core = model.model
        picture_sec = ceilings.seconds(
            lambda: core.multi_modal_projector(core.vision_tower(shown).last_hidden_state), _REPEATS
        )
    say("a prompt, by transformers")
    prefill_sec = ceilings.seconds(
        lambda: model(input_ids=ids, logits_to_keep=1, use_cache=True).logits, _REPEATS
    )
    say("writing, by transformers")
    one = _generate_sec(model, ids)
    several = _generate_sec(model, few)
    return Theirs(
        1 / picture_sec if picture_sec else 0.0,
        PROMPT_TOKENS / prefill_sec,
        1 / one,
        TOGETHER / several,
    )


def _generate_sec(model: Any, ids: torch.Tensor) -> float:
    """Return the seconds that a step of `generate` takes: a long run less a short one."""

    def run(tokens: int) -> float:
        return ceilings.seconds(
            lambda: model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
            ),
            1,
        )

    return max((run(DECODED) - run(_SETTLED)) / (DECODED - _SETTLED), 1e-9)


def filler(tokenizer: TextTokenizer, prompt_format: PromptFormat, tokens: int) -> PreparedPrompt:
    """Return a prompt of exactly `tokens` tokens that says nothing."""
    prompt = prepare(Conversation().user(WORD), tokenizer, prompt_format)
    word = tokenizer.encode(WORD)[0]
    ids = np.append(prompt.ids, np.full(tokens, word, dtype=np.int64))[:tokens]
    return PreparedPrompt(ids)
