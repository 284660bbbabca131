"""config.json in the two forms that programs expect: as published, and as transformers 5 has it.

Both say the same; they differ in how rotary positions are written, and in what is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import Gemma3ForCausalLM

from gemma3vl_app.conversion.expressible import GLOBAL, SLIDING, is_scaled
from gemma3vl_app.errors import ConversionError
from gemma3vl_app.loading.checkpoint import Checkpoint
from gemma3vl_app.loading.checkpoint_files import config_for
from gemma3vl_app.loading.loader import build_skeleton


def published_config(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
    """Return config.json as programs from before transformers 5 read it, too.

    A config that is in this form stays as sparse as it is. Raises `ConversionError` for scaled
    positions in sliding layers, which it has no place for.
    """
    config = config_for(checkpoint.config, dtype)
    config.pop("transformers_version", None)
    if "text_config" not in config:
        return _with_plain_rope(config)
    parts = {part: config[part] for part in ("text_config", "vision_config") if part in config}
    for part, settings in parts.items():
        plain = _with_plain_rope(settings) if part == "text_config" else settings
        config[part] = {k: v for k, v in plain.items() if k not in ("dtype", "torch_dtype")}
    return config


def transformers5_config(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
    """Return config.json as transformers 5 writes it, with every value."""
    model = build_skeleton(checkpoint)
    config: Any = model.config
    config.dtype = dtype
    for part in ("text_config", "vision_config"):
        if not isinstance(model, Gemma3ForCausalLM):
            getattr(config, part).dtype = dtype
    written = json.loads(config.to_json_string())  # as save_pretrained writes it
    return {**written, "architectures": checkpoint.config["architectures"]}


def _with_plain_rope(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of the language model with positions as before transformers 5."""
    result = dict(settings)
    by_layer = result.pop("rope_parameters", None)
    if by_layer is not None:
        everywhere = dict(by_layer.get(GLOBAL, {}))
        sliding = by_layer.get(SLIDING) or {}
        if is_scaled(sliding):
            raise ConversionError(
                "This model scales positions in its sliding layers, and a config.json as published "
                "cannot say so. Write 'transformers5', which says everything."
            )
        result["rope_theta"] = everywhere.pop("rope_theta", None)
        result["rope_local_base_freq"] = sliding.get("rope_theta")
        result["rope_scaling"] = everywhere if is_scaled(everywhere) else None
    result.pop("_sliding_window_pattern", None)  # `layer_types` says it
    return result
