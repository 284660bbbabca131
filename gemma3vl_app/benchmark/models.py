"""Random models of real widths to measure on: their speed is real, their words are not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from gemma3vl_app import catalog
from gemma3vl_app.engine.engine import Engine
from gemma3vl_app.loading import base_270m_folder
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.prompt import PreparedPrompt
from gemma3vl_app.prompting.tokenizer import TextTokenizer

WORD = " river"  # one token
_SPREAD = 0.02  # standard deviation of the random weights, as in the published initializer_range


def random_model(
    size: str, *, layers: int, tower_layers: int | None = None, seed: int = 0
) -> Gemma3ForConditionalGeneration:
    """Build a bf16 model as wide as `size`; without `tower_layers` it has the whole tower."""
    config = Gemma3Config.from_dict(catalog.published_config(size))
    text: Any = config.text_config
    text.num_hidden_layers, text.layer_types = layers, text.layer_types[:layers]
    vision: Any = config.vision_config
    vision.num_hidden_layers = tower_layers or vision.num_hidden_layers
    torch.manual_seed(seed)
    untyped: Any = AutoModelForImageTextToText  # transformers leaves from_config unannotated
    model = untyped.from_config(config, dtype=torch.bfloat16)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() > 1:  # transformers leaves the projector zero
            parameter.normal_(std=_SPREAD)
    assert isinstance(model, Gemma3ForConditionalGeneration)
    model.train(False)
    return model


def random_checkpoint(
    folder: Path, size: str, *, layers: int, tower_layers: int | None = None
) -> Path:
    """Write `random_model` into `folder` as a checkpoint in bf16, and return the folder."""
    model = random_model(size, layers=layers, tower_layers=tower_layers)
    text: Any = model.config.text_config
    vision: Any = model.config.vision_config
    config = catalog.published_config(size)
    config["text_config"] |= {"num_hidden_layers": layers, "layer_types": text.layer_types}
    config["vision_config"] |= {"num_hidden_layers": vision.num_hidden_layers}
    weights = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    os.symlink(base_270m_folder() / "tokenizer.json", folder / "tokenizer.json")
    return folder


def noise_picture(seed: int) -> Picture:
    """Return a picture of large random blocks, never cropped."""
    noise = np.random.default_rng(seed).bytes(8 * 8 * 3)
    blocks = np.frombuffer(noise, dtype=np.uint8).reshape(8, 8, 3)
    return Picture.open(blocks.repeat(32, 0).repeat(32, 1), name=f"{seed}.png", crops="off")


def drawn_picture(seed: int) -> Picture:
    """Return a drawing of five shapes, of which the demo has much to say."""
    rng = np.random.default_rng(seed)
    drawing = Image.new("RGB", (224, 224), "white")
    pen = ImageDraw.Draw(drawing)
    for place in rng.permutation(9)[:5]:  # of 3 x 3
        x, y = 16 + 70 * (place % 3), 16 + 70 * (place // 3)
        colour = str(rng.choice(("red", "green", "blue", "orange", "black")))
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + 52, y + 52), fill=colour)
    return Picture.open(drawing, name=f"{seed}.png", crops="off")


def filler(tokenizer: TextTokenizer, prompt_format: PromptFormat, tokens: int) -> PreparedPrompt:
    """Return a prompt of exactly `tokens` tokens that says nothing."""
    prompt = prepare(Conversation().user(WORD), tokenizer, prompt_format)
    word = tokenizer.encode(WORD)[0]
    ids = np.append(prompt.ids, np.full(tokens, word, dtype=np.int64))[:tokens]
    return PreparedPrompt(ids)


def tokenizer_and_format(size: str) -> tuple[TextTokenizer, PromptFormat]:
    """Return the Gemma 3 tokenizer (from the demo's base model) and the prompt format of `size`."""
    tokenizer = TextTokenizer.from_file(Path(base_270m_folder()) / "tokenizer.json")
    return tokenizer, PromptFormat.from_config(catalog.published_config(size), None, tokenizer)


def engine_over(
    model: Gemma3ForConditionalGeneration, tokenizer: TextTokenizer, prompt_format: PromptFormat
) -> Engine:
    """Start an engine over `model`, which no stop token interrupts."""
    return Engine(model, tokenizer, prompt_format, stop_ids=())
