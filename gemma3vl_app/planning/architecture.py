"""What a Gemma 3 of some config.json consists of: its parts, their parameters, its attention.

Counts from numbers alone: no torch, no weights. A test compares the counts with transformers'
classes. Shapes follow transformers' `Gemma3TextModel` and `SiglipVisionModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma3vl_app.errors import LoadError

# What sparse configs leave out: the defaults of transformers' Gemma3TextConfig and
# SiglipVisionConfig (configuration_gemma3.py, configuration_siglip.py; 5.23).
TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 1 << 8,
    "sliding_window": 4096,
    "max_position_embeddings": 131_072,
    "sliding_window_pattern": 6,
}
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
COLOURS = 3
MOST_LAYERS = 1000  # far beyond any release; a config that says more is damaged


@dataclass(frozen=True)
class Part:
    """A module that is placed as one; `matrices` are the weights that may be quantised.

    `matrix_rows` is the number of their output features, each of which has a scale in int8.
    `table` counts those of the embeddings, which are the output matrix, too, with a row for each of
    `table_rows` tokens. `others` counts parameters that always stay in the arithmetic's dtype.
    """

    name: str
    matrices: int = 0
    matrix_rows: int = 0
    table: int = 0
    table_rows: int = 0
    others: int = 0

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.matrices + self.table + self.others


@dataclass(frozen=True, kw_only=True)
class Vision:
    """The tower's sizes: `patches` of `width` go through `layers` of `heads`."""

    width: int
    intermediate: int
    layers: int
    heads: int
    patches: int
    side_pixels: int


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model's parts and sizes.

    `home` are the parts that stay together (embeddings, which are the output matrix too; tower,
    projector, last norm), `layers` the decoder layers in order; `windows` their sliding windows in
    tokens, None for global ones. `weightless` are modules without weights that need a place.
    """

    home: tuple[Part, ...]
    layers: tuple[Part, ...]
    weightless: tuple[str, ...]
    windows: tuple[int | None, ...]
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens: int
    image_tokens: int
    vision: Vision | None

    @property
    def parameters(self) -> int:
        """All parameters; the output matrix is the embeddings and counts once."""
        return sum(part.parameters for part in (*self.home, *self.layers))

    @property
    def vision_parameters(self) -> int:
        """Those of the tower."""
        return sum(part.parameters for part in self.home if part.name.endswith("vision_tower"))

    @property
    def names(self) -> tuple[str, ...]:
        """Every module a device map has to place, in the order of the computation."""
        return (
            *(part.name for part in self.home),
            "lm_head",
            *self.weightless,
            *(part.name for part in self.layers),
        )


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Read a config.json, sparse or full; raises `LoadError` for one that makes no sense."""
    nested = config.get("text_config")
    try:
        if not isinstance(nested, Mapping | None):
            raise TypeError("text_config is no object")
        text = TEXT_DEFAULTS | dict(nested if nested is not None else config)
        vision = config.get("vision_config") if nested is not None else None
        return _architecture(config, text, None if vision is None else VISION_DEFAULTS | vision)
    except (TypeError, ValueError, ArithmeticError, KeyError) as error:
        raise LoadError(
            "config.json does not describe a Gemma 3 model. Copy it again from the original."
        ) from error


def _architecture(
    config: Mapping[str, Any], text: dict[str, Any], vision: dict[str, Any] | None
) -> Architecture:
    hidden, head_dim = _size(text, "hidden_size"), _size(text, "head_dim")
    prefix = "model.language_model" if vision is not None else "model"
    layers = _size(text, "num_hidden_layers")
    if layers > MOST_LAYERS:
        raise ValueError(f"{layers} layers")
    kinds = text.get("layer_types") or [
        "full_attention" if (layer + 1) % text["sliding_window_pattern"] == 0 else "sliding"
        for layer in range(layers)
    ]
    if len(kinds) != layers:
        raise ValueError(f"{len(kinds)} kinds of layers for {layers} layers")
    rows = _size(text, "vocab_size")
    home = [Part(f"{prefix}.embed_tokens", table=rows * hidden, table_rows=rows)]
    if vision is not None:
        home += _vision_parts(vision, hidden)
    home.append(Part(f"{prefix}.norm", others=hidden))
    return Architecture(
        home=tuple(home),
        layers=tuple(_layer(f"{prefix}.layers.{layer}", text) for layer in range(layers)),
        weightless=(f"{prefix}.rotary_emb",),
        windows=tuple(
            None if kind == "full_attention" else _size(text, "sliding_window") for kind in kinds
        ),
        hidden=hidden,
        intermediate=_size(text, "intermediate_size"),
        vocabulary=_size(text, "vocab_size"),
        heads=_size(text, "num_attention_heads"),
        kv_heads=_size(text, "num_key_value_heads"),
        head_dim=head_dim,
        context_tokens=_size(text, "max_position_embeddings"),
        image_tokens=0 if vision is None else int(config.get("mm_tokens_per_image", 1 << 8)),
        vision=None if vision is None else _vision(vision),
    )


def _layer(name: str, text: dict[str, Any]) -> Part:
    hidden, inner = _size(text, "hidden_size"), _size(text, "intermediate_size")
    width = _size(text, "head_dim")
    queries = _size(text, "num_attention_heads") * width
    keys = _size(text, "num_key_value_heads") * width
    return Part(
        name,
        # q and o, k and v, gate and up and down
        matrices=2 * hidden * queries + 2 * hidden * keys + 3 * hidden * inner,
        matrix_rows=queries + 2 * keys + hidden + 2 * inner + hidden,
        others=4 * hidden + 2 * width,  # four norms of the layer, one each of queries and keys
    )


def _vision_parts(vision: dict[str, Any], hidden: int) -> list[Part]:
    sizes = _vision(vision)
    width, inner = sizes.width, sizes.intermediate
    patch = COLOURS * _size(vision, "patch_size") ** 2
    attention = 4 * (width * width + width)
    perceptron = 2 * width * inner + inner + width
    norms = 4 * width
    tower = (
        (patch + 1) * width
        + sizes.patches * width
        + sizes.layers * (attention + perceptron + norms)
        + 2 * width
    )
    return [
        Part("model.vision_tower", others=tower),
        Part("model.multi_modal_projector", others=width * hidden + width),
    ]


def _vision(vision: dict[str, Any]) -> Vision:
    return Vision(
        width=_size(vision, "hidden_size"),
        intermediate=_size(vision, "intermediate_size"),
        layers=_size(vision, "num_hidden_layers"),
        heads=_size(vision, "num_attention_heads"),
        patches=(_size(vision, "image_size") // _size(vision, "patch_size")) ** 2,
        side_pixels=_size(vision, "image_size"),
    )


def _size(values: Mapping[str, Any], key: str) -> int:
    """Return a positive whole number of a config."""
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is {value!r}")
    return value
