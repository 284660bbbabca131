"""What transformers reaches over the same weights: its modules, attention, cache and `generate`.

4-bit weights are bitsandbytes' nf4 with the output matrix as it is, as `from_pretrained` has them;
others have the dtype that suits the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import (
    Gemma3ForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from gemma3vl_app.benchmark import ceilings
from gemma3vl_app.benchmark.models import filler, noise_picture
from gemma3vl_app.engine.model import finish_work
from gemma3vl_app.loading import LoadedModel, load_model
from gemma3vl_app.loading.assembly import Model, arithmetic_of
from gemma3vl_app.loading.norms import FusedRMSNorm
from gemma3vl_app.messages import Conversation
from gemma3vl_app.planning import LoadPlan
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.pixels import pixels
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.tokenizer import TextTokenizer

PROMPT_TOKENS = 512
TOGETHER = 8
TOGETHER_TOKENS = 64  # of each prompt, when several are decoded together
DECODED = 24  # tokens after each prompt
SETTLED = 4  # first tokens that are not timed
REPEATS = 3


@dataclass(frozen=True)
class Theirs:
    """What transformers reached; 0 where there is nothing to measure."""

    pictures_per_sec: float
    prefill_tokens_per_sec: float
    tokens_per_sec: float
    together_tokens_per_sec: float


def load_theirs(source: str | Path, ours: LoadPlan, wishes: Mapping[str, Any]) -> LoadedModel:
    """Load what transformers would compute with where we compute as in the plan `ours`."""
    kinds = {"bfloat16": "bf16", "float32": "fp32"}
    kind = "nf4" if ours.weights in ("nf4", "int4") else kinds[ours.dtype]
    loaded = load_model(source, **{**wishes, "weights": kind}, fast_paths=False)
    _restore_norms(loaded.model)
    return loaded


@torch.inference_mode()
def measure_transformers(
    loaded: LoadedModel, say: Callable[[str], None], *, pictures: bool = True
) -> Theirs:
    """Measure a model of `load_theirs`."""
    tokenizer = TextTokenizer.from_file(loaded.tokenizer_file)
    prompt_format = PromptFormat.from_config(loaded.config, loaded.preprocessor, tokenizer)
    model: Any = loaded.model  # transformers leaves much unannotated
    model.set_attn_implementation("sdpa")
    device, dtype = model.device, arithmetic_of(model)
    ids = torch.tensor(filler(tokenizer, prompt_format, PROMPT_TOKENS).ids)[None].to(device)
    few = ids[:, :TOGETHER_TOKENS].expand(TOGETHER, TOGETHER_TOKENS).contiguous()

    picture_sec = 0.0
    if pictures and isinstance(model, Gemma3ForConditionalGeneration):
        say("a picture, by transformers")
        prompt = prepare(Conversation().user(noise_picture(0)), tokenizer, prompt_format)
        shown = torch.from_numpy(pixels(prompt.images[0], prompt_format))[None].to(device, dtype)
        core = model.model
        picture_sec = ceilings.seconds(
            lambda: core.multi_modal_projector(core.vision_tower(shown).last_hidden_state), REPEATS
        )
    say("a prompt, by transformers")
    prefill_sec = ceilings.seconds(
        lambda: model(input_ids=ids, logits_to_keep=1, use_cache=True).logits, REPEATS
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


def _restore_norms(model: Model) -> None:
    """Put transformers' own norms in the place of ours."""
    for name, module in [*model.named_modules()]:
        if isinstance(module, FusedRMSNorm):
            norm = Gemma3RMSNorm(0, module.eps)
            norm.weight = module.weight
            model.set_submodule(name, norm)


class _Clock(StoppingCriteria):
    """Notes when each step of `generate` ends; stops nothing."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **unused: Any
    ) -> torch.BoolTensor:
        finish_work(input_ids)
        self.ended.append(time.perf_counter())
        goes_on = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return cast(torch.BoolTensor, goes_on)


def _generate_sec(model: Any, ids: torch.Tensor) -> float:
    """Return the median seconds that a step of `generate` takes, its first ones left out."""
    clock = _Clock()
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=DECODED,
        max_new_tokens=DECODED,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    return float(np.median(np.diff(clock.ended[SETTLED:])))
