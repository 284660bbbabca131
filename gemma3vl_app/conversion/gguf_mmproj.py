"""The mmproj GGUF file: vision tower and projector, as llama.cpp's multimodal part reads them.

The tower is never quantised: rounding costs most there, and it is a small part of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from gguf import GGMLQuantizationType as Kind

from gemma3vl_app.conversion.gguf_file import (
    BF16,
    F16,
    F32,
    Entry,
    StoredType,
    add_general,
    entry,
    write_file,
)
from gemma3vl_app.conversion.gguf_names import GGUF_VISION
from gemma3vl_app.conversion.names import MEMORY_PROJECTOR, MEMORY_TOWER, to_file
from gemma3vl_app.conversion.options import GgufType
from gemma3vl_app.generation import Report
from gemma3vl_app.loading.gguf_vision import POOLING
from gemma3vl_app.loading.loader import build_skeleton
from gemma3vl_app.loading.sources import Source

ARCHITECTURE = "clip"
TOWER_TYPES: Mapping[GgufType, StoredType] = {
    **{"f32": F32, "f16": F16, "bf16": BF16},
    **{"q8_0": BF16, "q4_0": BF16},
}
# llama.cpp wants the embeddings so, and transposes the projection, which it cannot do in bf16
# everywhere; its own converter writes that in fp16, which would round it.
IN_FP32 = ("v.patch_embd.weight", "v.position_embd.weight", "mm.input_projection.weight")
HALF = 0.5  # mean and deviation of each colour, where the checkpoint does not say


def takes_pictures(source: Source) -> bool:
    """Whether there is anything to put into an mmproj file."""
    return any(name.startswith(MEMORY_TOWER) for name in source.tensors)


def mmproj_entries(source: Source, stored: StoredType) -> list[Entry]:
    """Return the tower's and the projector's tensors as the file holds them, not read yet."""
    own = {
        name: weight
        for name, weight in source.tensors.items()
        if name.startswith((MEMORY_TOWER, MEMORY_PROJECTOR))
    }
    return [
        entry(name, weight, Kind.F32 if name in IN_FP32 else stored.matrices)
        for name, weight in to_file(own, GGUF_VISION).items()
    ]


def write_mmproj(path: Path, source: Source, stored: StoredType, report: Report) -> None:
    """Write the vision part of `source` to `path`; raises `OSError` where the disk refuses."""
    config: Any = build_skeleton(source.checkpoint).config
    vision = config.vision_config
    preprocessor = source.checkpoint.preprocessor or {}
    entries = mmproj_entries(source, stored)
    writer = gguf.GGUFWriter(None, ARCHITECTURE)
    parameters = sum(each.weight.nbytes // each.weight.dtype.itemsize for each in entries)
    add_general(writer, source, stored, gguf.GGUFType.MMPROJ, parameters)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.GEMMA3)
    writer.add_vision_projection_dim(config.text_config.hidden_size)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_hidden_layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_image_mean(preprocessor.get("image_mean", [HALF] * 3))
    writer.add_vision_image_std(preprocessor.get("image_std", [HALF] * 3))
    writer.add_vision_use_gelu(True)
    side = vision.image_size // vision.patch_size
    pooling = side // math.isqrt(config.mm_tokens_per_image)
    if pooling != POOLING:  # of a test model
        writer.add_vision_projector_scale_factor(pooling)
    write_file(path, writer, entries, report)
