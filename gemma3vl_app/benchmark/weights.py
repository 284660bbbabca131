"""What a model's work is made of: bytes that a token reads, operations that a prompt takes.

Counted from the loaded modules, whatever form their weights have. Shapes: P patches of a picture,
n tokens of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gemma3vl_app.loading.assembly import Model, arithmetic_of


@dataclass(frozen=True)
class Work:
    """Counted work of one model.

    Attributes:
        token_bytes: weights that one decode step reads: text layers and output matrix.
        text_weights: weights of the text layers' matrices; a token multiplies with each once.
        tower_flop: operations of one picture through tower and projector; 0 without a tower.
        kv_bytes: keys and values that a token of context adds, global layers only.
    """

    token_bytes: int
    text_weights: int
    tower_flop: float
    kv_bytes: int

    def prefill_flop(self, tokens: int) -> float:
        """Return the operations of a prompt's matrices; attention's own are left out."""
        return 2.0 * self.text_weights * tokens


def count(model: Model) -> Work:
    """Count the work of a loaded model."""
    whole: Any = model
    core = whole.model
    text = getattr(core, "language_model", core)
    matrices = [each for each in text.layers.modules() if isinstance(each, torch.nn.Linear)]
    config = text.config
    globals_ = sum(kind == "full_attention" for kind in config.layer_types)
    element_bytes = arithmetic_of(model).itemsize
    return Work(
        token_bytes=sum(map(_stored_bytes, matrices)) + _stored_bytes(whole.lm_head),
        text_weights=sum(each.in_features * each.out_features for each in matrices),
        tower_flop=_tower_flop(core) if hasattr(core, "vision_tower") else 0.0,
        kv_bytes=2 * globals_ * config.num_key_value_heads * config.head_dim * element_bytes,
    )


def _stored_bytes(matrix: Any) -> int:
    """Return the bytes of a matrix as stored, scales of quantised ones included."""
    state = getattr(matrix.weight, "quant_state", None)
    scales = state.absmax.nbytes if state is not None else 0
    for name in ("scale", "scales_zeros"):
        if (scale := getattr(matrix, name, None)) is not None:
            scales += scale.nbytes
    return int(matrix.weight.nbytes + scales)


def _tower_flop(core: Any) -> float:
    tower = core.vision_tower
    patches = tower.embeddings.num_positions
    weights = sum(each.weight.numel() for each in tower.modules() if hasattr(each, "in_features"))
    layers, width = len(tower.encoder.layers), tower.config.hidden_size
    attention = 4.0 * layers * patches**2 * width  # scores, and their product with the values
    embedding = tower.embeddings.patch_embedding.weight.numel()
    projector = core.multi_modal_projector
    projected = projector.mm_input_projection_weight.numel() * projector.tokens_per_side**2
    return float(2 * patches * (weights + embedding) + attention + 2 * projected)
