"""How exactly pictures are encoded in 16 bits: their features' distance from those in float32."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from gemma3vl_app.benchmark.baseline import load_theirs
from gemma3vl_app.benchmark.models import noise_picture
from gemma3vl_app.engine.vision import VisionEncoder
from gemma3vl_app.loading import LoadedModel, load_model
from gemma3vl_app.loading.assembly import arithmetic_of
from gemma3vl_app.messages import Conversation
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.pixels import pixels
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.tokenizer import TextTokenizer


@torch.inference_mode()
def errors(source: str | Path, weights: str) -> tuple[float, float]:
    """Return the relative L2 errors of one picture's features: ours, and transformers'.

    Exact is what transformers computes in float32 with the weights as they are stored. One model
    is in memory at a time, and of the exact one only tower and projector are widened.
    """
    loaded = load_model(source, weights=weights)
    plan = loaded.plan
    ours = _ours(loaded).float()
    del loaded
    gc.collect()
    loaded = load_theirs(source, plan, {})
    theirs = _theirs(loaded).float()
    core: Any = loaded.model.model  # transformers leaves much unannotated
    core.vision_tower.float()
    core.multi_modal_projector.float()
    exact = _theirs(loaded)
    return _error(ours, exact), _error(theirs, exact)


def _ours(loaded: LoadedModel) -> torch.Tensor:
    """Return features (T, D) as the engine computes them."""
    encoder = VisionEncoder(loaded.model.model, unit_sec=1.0)
    hidden = encoder.embed(_pixels(loaded).to(arithmetic_of(loaded.model)))
    for layer in encoder.layers:
        hidden = layer(hidden)
    return encoder.project(hidden)[0]


def _theirs(loaded: LoadedModel) -> torch.Tensor:
    """Return features (T, D) as transformers computes them, in the dtype of the tower."""
    core: Any = loaded.model.model
    parameter = next(core.vision_tower.parameters())
    shown = _pixels(loaded).to(parameter.device, parameter.dtype)
    features: torch.Tensor = core.get_image_features(shown).pooler_output[0]
    return features


def _pixels(loaded: LoadedModel) -> torch.Tensor:
    """Return a picture (1, 3, S, S) as the tower takes it."""
    tokenizer = TextTokenizer.from_file(loaded.tokenizer_file)
    prompt_format = PromptFormat.from_config(loaded.config, loaded.preprocessor, tokenizer)
    prompt = prepare(Conversation().user(noise_picture(0)), tokenizer, prompt_format)
    return torch.from_numpy(pixels(prompt.images[0], prompt_format))[None]


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())
