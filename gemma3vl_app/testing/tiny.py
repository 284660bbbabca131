"""`tiny_checkpoint`: a complete Gemma 3 vision-language checkpoint, random and small.

It has the real tokenizer and every part of the architecture: sliding and global layers, scaled
rope, a vision tower, pooling, a projector. What it says is nonsense; how it computes is Gemma 3.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from gemma3vl_app.loading import base_270m_folder
from gemma3vl_app.loading.checkpoint import hub_name

Layout = Literal["hub", "transformers5"]

VOCABULARY = 262_208  # of the released vision-language models: covers the image token, 262144
IMAGE_PIXELS, PATCH_PIXELS, POOLING = 64, 8, 2
IMAGE_TOKENS = (IMAGE_PIXELS // PATCH_PIXELS // POOLING) ** 2  # 16 a picture
SLIDING_PATTERN = 6


def tiny_checkpoint(
    folder: str | Path,
    *,
    layout: Layout = "hub",
    layers: int = 6,
    window: int = 32,
    seed: int = 0,
    text: Mapping[str, object] | None = None,
) -> Path:
    """Write a random Gemma 3 vision-language checkpoint into `folder`, and return the folder.

    `layout` chooses key names and form of config.json: the hub's, or those of transformers 5 in
    memory; the weights are the same. Every sixth of the `layers` and the last are global, others
    see `window` tokens back. Pictures of 64 x 64 pixels cost 16 tokens. The same `seed` gives the
    same weights. `text` overrides text_config, such as the numbers of heads. Needs the demo's base
    model for its tokenizer, and converts it where it is absent.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    sparse = _config(layers, window)
    sparse["text_config"] |= text or {}
    config = Gemma3Config.from_dict(json.loads(json.dumps(sparse)))
    weights = _random_weights(config, seed)
    if layout == "hub":
        weights = {hub_name(name): tensor for name, tensor in weights.items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    full = {**config.to_dict(), "architectures": sparse["architectures"]}
    _write_json(target / "config.json", sparse if layout == "hub" else full)
    _write_json(target / "generation_config.json", _GENERATION)
    _write_json(target / "preprocessor_config.json", _PREPROCESSOR)
    _link(base_270m_folder() / "tokenizer.json", target / "tokenizer.json")
    return target


_GENERATION = {
    "bos_token_id": 2,
    "eos_token_id": [1, 106],
    "pad_token_id": 0,
    "do_sample": True,
    "top_k": 64,
    "top_p": 0.95,
}
_PREPROCESSOR = {
    "image_processor_type": "Gemma3ImageProcessor",
    "processor_class": "Gemma3Processor",
    "do_convert_rgb": None,
    "do_resize": True,
    "size": {"height": IMAGE_PIXELS, "width": IMAGE_PIXELS},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_seq_length": IMAGE_TOKENS,
    "do_pan_and_scan": None,
}


def _config(layers: int, window: int) -> dict[str, Any]:
    """Return config.json in the published, sparse form."""
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "image_token_index": 262_144,
        "eos_token_id": [1, 106],
        "mm_tokens_per_image": IMAGE_TOKENS,
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "max_position_embeddings": 8192,
            "sliding_window": window,
            "layer_types": [
                "full_attention"
                if (layer + 1) % SLIDING_PATTERN == 0 or layer == layers - 1
                else "sliding_attention"
                for layer in range(layers)
            ],
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": IMAGE_PIXELS,
            "patch_size": PATCH_PIXELS,
            "vision_use_head": False,
        },
    }


def _random_weights(config: Gemma3Config, seed: int) -> dict[str, torch.Tensor]:
    """Return random bf16 weights under transformers 5's in-memory names.

    Not transformers' own initialisation: that leaves the projector at zero (pictures would not
    matter) and makes all logits nearly equal.
    """
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in model.named_parameters():
        if name == "lm_head.weight":  # the embeddings again
            continue
        values = torch.randn(parameter.shape, generator=generator) * _spread(name, parameter.shape)
        weights[name] = (values + _centre(name)).to(torch.bfloat16)
    return weights


def _spread(name: str, shape: torch.Size) -> float:
    """Return the standard deviation of a weight: every layer keeps the size of what it is given.

    Embeddings get 1 / sqrt(width), so that `embed_scale` makes them unit size, and so that the
    logits (unit-size states times embeddings) spread by about 1.
    """
    if name.endswith("bias") or "norm" in name or len(shape) == 1:
        return 0.2
    if "patch_embedding" in name:
        return 2 / math.sqrt(math.prod(shape[1:]))
    if "position_embedding" in name:
        return 0.5
    if "mm_input_projection" in name:  # (vision width, text width), applied from the left
        return 1 / math.sqrt(shape[0])
    return 1 / math.sqrt(shape[-1])


def _centre(name: str) -> float:
    """Return the mean of a weight.

    Gemma's norms multiply by 1 + w and SigLIP's by w. Larger query and key norms make attention
    choose, as a trained model does; otherwise every position would see about the same average.
    Larger norms behind the layers let them outweigh the last token's embedding; otherwise the model
    would repeat that token.
    """
    if "q_norm" in name or "k_norm" in name:
        return 0.7
    if "post_attention_layernorm" in name or "post_feedforward_layernorm" in name:
        return 1.5
    return 1.0 if re.search(r"vision_tower.*layer_?norm\d?\.weight$", name) else 0.0


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where file systems differ."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
