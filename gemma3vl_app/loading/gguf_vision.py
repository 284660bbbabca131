"""Gemma 3's vision tower and projector out of an mmproj GGUF: weights and picture settings.

Knows the GGUF names of one architecture ("clip") with one projector ("gemma3") and llama.cpp's
conventions for it; knows nothing of the language model, or of where the file came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.gguf_header import SHOWN, Reader, stored_shape
from gemma3vl_app.loading.gguf_text import check_kind, dequantised
from gemma3vl_app.loading.gguf_values import count, number, optional

VISION = "clip.vision."  # prefix of the settings
TOWER = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector."
SOFT_NORM = f"{PROJECTOR}mm_soft_emb_norm.weight"

# GGUF name to the name that transformers 5 uses in memory
OUTER_NAMES = {
    "v.patch_embd.weight": f"{TOWER}embeddings.patch_embedding.weight",
    "v.patch_embd.bias": f"{TOWER}embeddings.patch_embedding.bias",
    "v.position_embd.weight": f"{TOWER}embeddings.position_embedding.weight",
    "v.post_ln.weight": f"{TOWER}post_layernorm.weight",
    "v.post_ln.bias": f"{TOWER}post_layernorm.bias",
    # Stored as in the checkpoint, (tower width, text width): it multiplies from the right
    "mm.input_projection.weight": f"{PROJECTOR}mm_input_projection_weight",
    "mm.soft_emb_norm.weight": SOFT_NORM,
}
LAYER_NAMES = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
SWAPPED = {"mlp.fc1": "mlp.fc2", "mlp.fc2": "mlp.fc1"}
POOLING = 4  # patches a side that become one token; test models write another number


@dataclass(frozen=True)
class VisionSettings:
    """What an mmproj says: `config` is a `vision_config`, `preprocessor` a file of its own.

    `text_width` is the hidden size of the language models it fits.
    """

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    image_tokens: int
    text_width: int


def is_tower(reader: Reader) -> bool:
    """Whether an opened GGUF is an mmproj of Gemma 3, of whatever size."""
    return optional(reader, "general.architecture") == "clip" and _projector(reader) == "gemma3"


def read_vision(reader: Reader) -> VisionSettings:
    """Return the settings of an mmproj; raises `LoadError` for one of another model."""
    _check_architecture(reader)
    shapes = _shapes(reader)
    projection = shapes.get("mm.input_projection.weight", ())
    width = count(reader, VISION + "embedding_length")
    image, patch = count(reader, VISION + "image_size"), count(reader, VISION + "patch_size")
    if len(projection) != 2 or projection[0] != width:
        raise LoadError(
            "The mmproj file is damaged: its tensors do not fit its settings. Copy it again."
        )
    pooling = VISION + "projector.scale_factor"
    scale = count(reader, pooling) if pooling in reader.fields else POOLING
    if image % (patch * scale):
        raise LoadError(
            f"The mmproj file cuts pictures of {image} pixels into patches of {patch} and pools "
            f"{scale} of them, which does not come out even. Copy it again."
        )
    image_tokens = (image // patch // scale) ** 2
    return VisionSettings(
        config={
            "model_type": "siglip_vision_model",
            "hidden_size": width,
            "intermediate_size": count(reader, VISION + "feed_forward_length"),
            "num_hidden_layers": _layers(reader),
            "num_attention_heads": count(reader, VISION + "attention.head_count"),
            "image_size": image,
            "patch_size": patch,
            "num_channels": 3,
            "layer_norm_eps": number(reader, VISION + "attention.layer_norm_epsilon"),
            "hidden_act": "gelu_pytorch_tanh",
            "vision_use_head": False,
        },
        preprocessor={
            "image_processor_type": "Gemma3ImageProcessor",
            "processor_class": "Gemma3Processor",
            "do_resize": True,
            "size": {"height": image, "width": image},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": _colours(reader, "image_mean"),
            "image_std": _colours(reader, "image_std"),
            "image_seq_length": image_tokens,
        },
        image_tokens=image_tokens,
        text_width=projection[1],
    )


def read_vision_weights(reader: Reader) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight as (transformers 5's in-memory name, bf16 tensor), one at a time."""
    names = vision_names(reader)
    for entry in reader.tensors:
        name = names[entry.name]
        # llama.cpp stores 1 + w of Gemma's own norm, and w of the tower's
        yield name, dequantised(entry, minus=1 if name == SOFT_NORM else 0)


def vision_names(reader: Reader) -> dict[str, str]:
    """Return the in-memory names by GGUF name; raises `LoadError` unless all are there, readable.

    Older files call the tower's first matrix `ffn_down` and its second `ffn_up`; the first is the
    one that ends in the larger width.
    """
    shapes = _shapes(reader)
    width = count(reader, VISION + "embedding_length")
    names = {}
    for entry in reader.tensors:
        check_kind(entry)
        names[entry.name] = _in_memory_name(entry.name, shapes, width)
    expected = {*OUTER_NAMES.values()} | {
        f"{TOWER}encoder.layers.{layer}.{name}.{part}"
        for layer in range(_layers(reader))
        for name in LAYER_NAMES.values()
        for part in ("weight", "bias")
    }
    if missing := expected - set(names.values()):
        raise LoadError(
            f"The mmproj file lacks {min(missing)!r} ({len(missing)} such tensors). "
            "Download or copy it again."
        )
    return names


def _in_memory_name(name: str, shapes: dict[str, tuple[int, ...]], width: int) -> str:
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    found = re.fullmatch(r"v\.blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in LAYER_NAMES:
        raise LoadError(f"The mmproj file holds {name[:SHOWN]!r}, which no Gemma 3 has.")
    layer, part = found[1], LAYER_NAMES[found[2]]
    if part in SWAPPED and _is_swapped(shapes, layer, width):
        part = SWAPPED[part]
    return f"{TOWER}encoder.layers.{layer}.{part}.{found[3]}"


def _is_swapped(shapes: dict[str, tuple[int, ...]], layer: str, width: int) -> bool:
    up = shapes.get(f"v.blk.{layer}.ffn_up.weight", ())
    return len(up) == 2 and up[0] == width and up[1] != width


def _shapes(reader: Reader) -> dict[str, tuple[int, ...]]:
    return {entry.name: stored_shape(entry) for entry in reader.tensors}


def _check_architecture(reader: Reader) -> None:
    architecture = str(optional(reader, "general.architecture"))[:SHOWN]
    if architecture != "clip":
        raise LoadError(
            f"The GGUF file given for pictures holds a {architecture!r} model; expected an mmproj "
            "file ('clip'), as llama.cpp's converter writes beside the language model."
        )
    projector = optional(reader, "clip.projector_type") or optional(
        reader, f"{VISION}projector_type"
    )
    if projector != "gemma3":
        raise LoadError(
            f"The mmproj file belongs to another kind of model ({str(projector)[:SHOWN]!r}); "
            "expected 'gemma3'. Take the one that was published with this model."
        )


def _projector(reader: Reader) -> object:
    own, mixed = "clip.projector_type", VISION + "projector_type"
    return optional(reader, own) or optional(reader, mixed)


def _layers(reader: Reader) -> int:
    layers = count(reader, VISION + "block_count")
    if layers > len(reader.tensors):
        raise LoadError(f"The mmproj file announces {layers} layers and does not hold them.")
    return layers


def _colours(reader: Reader, key: str) -> list[float]:
    """Return one number for each of red, green and blue."""
    found = optional(reader, VISION + key)
    if not isinstance(found, list) or len(found) != 3 or not all(_is_share(x) for x in found):
        raise LoadError(f"The mmproj file's {key!r} is not three numbers between 0 and 1.")
    return [float(each) for each in found]


def _is_share(found: object) -> bool:
    return isinstance(found, int | float) and 0 < found <= 1
