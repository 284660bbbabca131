"""What Megatron-Core calls Gemma 3's weights, as Megatron Bridge builds the model.

From NVIDIA-NeMo/Megatron-Bridge, `models/gemma_vl/gemma3_vl_bridge.py` and
`models/gemma/gemma3_bridge.py`. Norms are fused into the layer that follows or goes before; their
weights are w, as ours (`layernorm_zero_centered_gamma`). The output matrix is the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gemma3vl_app.conversion.layouts import ROWS, SAME, TRANSPOSED, Layout, Shape
from gemma3vl_app.conversion.names import (
    ATTENTION,
    GATES,
    MEMORY_PROJECTOR,
    MEMORY_TEXT,
    MEMORY_TEXT_ONLY,
    MEMORY_TOWER,
    PROJECTION,
    TOWER,
    NameTable,
    Row,
)

LANGUAGE_MODEL = "language_model."  # of the model with vision; the text-only one has no prefix
LAYERS = "decoder.layers."
EMBEDDINGS = "embedding.word_embeddings.weight"

# Name in memory below its prefix -> Megatron's below its own
OUTER = {"embed_tokens.weight": EMBEDDINGS, "norm.weight": "decoder.final_layernorm.weight"}
LAYER = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm_weight",
    "self_attn.q_norm": "self_attention.q_layernorm.weight",
    "self_attn.k_norm": "self_attention.k_layernorm.weight",
    "self_attn.o_proj": "self_attention.linear_proj.weight",
    "post_attention_layernorm": "self_attention.linear_proj.post_layernorm.weight",
    "pre_feedforward_layernorm": "mlp.linear_fc1.layer_norm_weight",
    "mlp.down_proj": "mlp.linear_fc2.weight",
    "post_feedforward_layernorm": "mlp.linear_fc2.post_layernorm.weight",
}
QKV, GATE_UP = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"
# Modules of Transformer Engine, which keep a state beside their weights: empty, but looked for
STATEFUL_OF_LAYER = (
    *("self_attention.linear_qkv", "self_attention.core_attention", "self_attention.linear_proj"),
    *("self_attention.q_layernorm", "self_attention.k_layernorm"),
    *("self_attention.linear_proj.post_layernorm", "mlp.linear_fc1", "mlp.linear_fc2"),
    "mlp.linear_fc2.post_layernorm",
)
STATEFUL = ("decoder.final_layernorm",)
STATEFUL_PROJECTOR = ("multi_modal_projector.mm_soft_embed_norm", "multi_modal_projector.proj")


@dataclass(frozen=True)
class Interleaved:
    """Queries, keys and values by groups: a key head's queries, its key, its value, the next.

    Each head has `head_dim` rows. In memory queries are (heads * head_dim, K), keys and values
    (groups * head_dim, K).
    """

    head_dim: int

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the sum of the rows by the common columns."""
        return ROWS.joined_shape(shapes)

    def join(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the groups below each other."""
        columns = weights[0].shape[1]
        groups = weights[1].shape[0] // self.head_dim
        apart = [each.reshape(groups, -1, columns) for each in weights]
        return torch.cat(apart, dim=1).reshape(-1, columns)

    def split(self, whole: torch.Tensor, shapes: Sequence[Shape], index: int) -> torch.Tensor:
        """Return queries, keys or values."""
        groups = shapes[1][0] // self.head_dim
        by_group = whole.reshape(groups, -1, whole.shape[1])
        sizes = [shape[0] // groups for shape in shapes]
        own = by_group.narrow(1, sum(sizes[:index]), sizes[index])
        return own.reshape(-1, whole.shape[1])


def megatron_table(head_dim: int) -> NameTable:
    """Return the table of a model whose heads are `head_dim` wide.

    `{layer}` stands where a checkpoint that keeps its layers apart has the number; others stack
    them, see `megatron_layers`.
    """
    rows = (
        *_text_rows(MEMORY_TEXT, LANGUAGE_MODEL, head_dim),
        *_tower_rows("vision_tower."),
        Row((MEMORY_PROJECTOR + PROJECTION,), "multi_modal_projector.proj.weight", TRANSPOSED),
        Row(
            (MEMORY_PROJECTOR + "mm_soft_emb_norm.weight",),
            "multi_modal_projector.mm_soft_embed_norm.weight",
        ),
        *_text_rows(MEMORY_TEXT_ONLY, "", head_dim),
    )
    # Megatron Bridge up to 0.3 keeps transformers 4's tower
    return NameTable("Megatron-Core's names", rows, _tower_rows("vision_tower.vision_model."))


def _tower_rows(prefix: str) -> tuple[Row, ...]:
    return tuple(Row((MEMORY_TOWER + name,), prefix + name) for name in TOWER)


def _text_rows(memory: str, megatron: str, head_dim: int) -> tuple[Row, ...]:
    def row(ours: Sequence[str], theirs: str, layout: Layout = SAME) -> Row:
        names = tuple(f"{memory}layers.{{layer}}.{each}.weight" for each in ours)
        return Row(names, f"{megatron}{LAYERS}{{layer}}.{theirs}", layout)

    return (
        *(Row((memory + ours,), megatron + theirs) for ours, theirs in OUTER.items()),
        *(row([ours], theirs) for ours, theirs in LAYER.items()),
        row([f"self_attn.{each}" for each in ATTENTION], QKV, Interleaved(head_dim)),
        row([f"mlp.{each}" for each in GATES], GATE_UP, ROWS),
    )
