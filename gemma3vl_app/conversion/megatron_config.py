"""run_config.yaml: from which Megatron Bridge builds the model that its weights belong to.

The fields of its `Gemma3VLModelProvider` and `Gemma3ModelProvider` that a size sets
(NVIDIA-NeMo/Megatron-Bridge, `gemma3_vl_bridge.py` and `gemma3_bridge.py`, `provider_bridge`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import yaml

from gemma3vl_app.conversion.expressible import check_plain
from gemma3vl_app.conversion.megatron_layers import ROWS_DIVISIBLE_BY
from gemma3vl_app.loading.gguf_text import SLIDING_PATTERN

MODELS = "megatron.bridge.models."
WITH_VISION = MODELS + "gemma_vl.gemma3_vl_provider.Gemma3VLModelProvider"
PROJECTOR = MODELS + "gemma_vl.modeling_gemma3_vl.Gemma3VLMultimodalProjectorConfig"
TEXT_ONLY = MODELS + "gemma.gemma3_provider.Gemma3ModelProvider"


def run_config(config: Any, dtype: torch.dtype) -> str:
    """Return the file's text for a model of transformers' `config` with weights of `dtype`."""
    text = config.get_text_config()
    model = _text_fields(text) | {
        "bf16": dtype == torch.bfloat16,
        "params_dtype": _named(dtype),
        "autocast_dtype": _named(dtype),
    }
    if text is config:
        model = {"_target_": TEXT_ONLY} | model
    else:
        model = {"_target_": WITH_VISION} | model | _vision_fields(config, text)
    # Beside the model, loading looks at these: weights only, of one process
    saved = {"save_optim": False, "save_rng": False, "fully_parallel_save": False}
    return str(yaml.safe_dump({"model": model, "checkpoint": saved}, sort_keys=False))


def _text_fields(text: Any) -> dict[str, object]:
    check_plain(text, "a Megatron checkpoint")
    rope = text.rope_parameters
    return {
        "num_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "ffn_hidden_size": text.intermediate_size,
        "num_attention_heads": text.num_attention_heads,
        "num_query_groups": text.num_key_value_heads,
        "kv_channels": text.head_dim,
        "seq_length": text.max_position_embeddings,
        "layernorm_epsilon": text.rms_norm_eps,
        "window_size": text.sliding_window,
        "interleaved_attn_pattern": _pattern(text.layer_types),
        "rotary_base": [
            rope["sliding_attention"]["rope_theta"],
            rope["full_attention"]["rope_theta"],
        ],
        "rope_scaling_factor": rope["full_attention"].get("factor") or 1.0,
        "softmax_scale": 1 / math.sqrt(text.query_pre_attn_scalar),
        "vocab_size": text.vocab_size,
        "make_vocab_size_divisible_by": ROWS_DIVISIBLE_BY,
        "share_embeddings_and_output_weights": True,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
    }


def _pattern(layer_types: list[str]) -> list[int] | list[str]:
    """Return how local and global layers follow each other; where irregularly, each layer's kind.

    Megatron Bridge up to 0.3 knows the regular ones only.
    """
    local = SLIDING_PATTERN - 1
    regular = [
        "full_attention" if (layer + 1) % SLIDING_PATTERN == 0 else "sliding_attention"
        for layer in range(len(layer_types))
    ]
    return [local, 1] if layer_types == regular else layer_types


def _vision_fields(config: Any, text: Any) -> dict[str, object]:
    vision = config.vision_config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = (*names, "image_size", "patch_size", "num_channels", "layer_norm_eps", "hidden_act")
    return {
        "vision_config": {"_target_": "transformers.SiglipVisionConfig"}
        | {name: getattr(vision, name) for name in sizes}
        | {"vision_use_head": False},
        "vision_projector_config": {
            "_target_": PROJECTOR,
            "input_size": vision.hidden_size,
            "hidden_size": text.hidden_size,
            "image_size": vision.image_size,
            "patch_dim": vision.patch_size,
            "tokens_per_image": config.mm_tokens_per_image,
            "num_layers": 1,
            "num_attention_heads": 8,
        },
        "mm_tokens_per_image": config.mm_tokens_per_image,
        "vision_start_token_id": config.boi_token_index,
        "vision_end_token_id": config.eoi_token_index,
        "image_token_id": config.image_token_id,
    }


def _named(dtype: torch.dtype) -> dict[str, object]:
    """Return a dtype as Megatron Bridge's files hold one: by name, not called."""
    return {"_target_": str(dtype), "_call_": False}
