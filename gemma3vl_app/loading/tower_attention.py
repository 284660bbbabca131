"""Attention of the vision tower on processors that compute in bfloat16: piece by piece.

There, torch's `scaled_dot_product_attention` takes most of a picture's time: 4,096 patches with 16
heads of 72 took 0.51 s a layer on two Zen 4 cores, 0.215 s with our kernel, and 0.34 s as products
of 512 queries of one head with all keys, which stand in for it. In float32 it is the other way
round (1.4 s against 4.3 s on two AVX2 cores), so only bfloat16 goes this way. Registered with
transformers under `NAME`.

Shapes: B pictures, H heads, P patches, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from gemma3vl_app.loading import compiled
from gemma3vl_app.loading.assembly import Model
from gemma3vl_app.loading.tower_kernel import fits, tower_kernel

NAME = "gemma3vl_tower"
QUERIES = 512  # of one head at once: their scores stay in the processor's cache


def use(model: Model) -> None:
    """Let the tower of `model` attend in pieces."""
    tower_kernel()  # compiled now rather than while somebody waits for an answer
    model.set_attn_implementation({"vision_config": NAME})


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over all patches: transformers' attention interface, without a mask.

    Takes query, key and value (B, H, P, D); returns (B, P, H, D) and no weights.
    """
    if attention_mask is not None:
        raise ValueError("the tower's patches all see one another: there is no mask")
    given = (query, key, value)
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in given)
    suits = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    kernel = tower_kernel() if suits and not learns and not compiled.is_off() else None
    if kernel is None or not fits(query.shape[-1], scaling):
        return _by_torch(query, key, value, scaling), None
    query, key, value = (each.transpose(1, 2) for each in given)
    return kernel(query, key, value, scaling), None


def _by_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    batch, heads, patches, width = query.shape
    output = query.new_empty(batch, patches, heads, width)
    for picture in range(batch):
        for head in range(heads):
            keys = key[picture, head].T.contiguous()  # (D, P)
            values = value[picture, head].contiguous()  # (P, D)
            for first in range(0, patches, QUERIES):
                some = slice(first, first + QUERIES)
                scores = (query[picture, head, some] * scaling) @ keys  # (n, P)
                output[picture, some, head] = scores.softmax(-1) @ values
    return output


AttentionInterface.register(NAME, attend)
