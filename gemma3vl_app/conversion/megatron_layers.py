"""Weights of single layers, and the tensors of all layers that Megatron-Core stores.

A checkpoint of alike layers has one tensor a kind, `decoder.layers.mlp.linear_fc2.weight`
(layers, N, K), of which each layer is a piece. Others are whole, and their one piece. Embeddings
are padded to a number of rows that divides well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gemma3vl_app.conversion.dcp_reader import DcpTensor
from gemma3vl_app.conversion.layouts import Shape
from gemma3vl_app.conversion.megatron_names import (
    EMBEDDINGS,
    LANGUAGE_MODEL,
    STATEFUL,
    STATEFUL_OF_LAYER,
    STATEFUL_PROJECTOR,
)
from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.conversion import HeldTensor, Stored

ROWS_DIVISIBLE_BY = 1 << 7  # make_vocab_size_divisible_by of Megatron Bridge's Gemma 3
OPTIMIZER = ("optimizer.", "chained_")  # beside the weights in what a training leaves
LAYER = re.compile(r"^((?:language_model\.)?decoder\.layers\.)(\d+)\.(.+)$")
STACK = re.compile(r"^((?:language_model\.)?decoder\.layers\.)(?!\d)(.+)$")


@dataclass(frozen=True)
class Piece:
    """A part of a tensor `key` of `shape`: where it begins, and what is there, in its shape."""

    key: str
    shape: Shape
    start: Shape
    part: Stored

    @property
    def sizes(self) -> Shape:
        """Its extent in the tensor."""
        return (*(1,) * (len(self.shape) - len(self.part.shape)), *self.part.shape)

    def read(self) -> torch.Tensor:
        """Return it with as many dimensions as the tensor."""
        return self.part.read().reshape(self.sizes).contiguous()


def in_pieces(tensors: Mapping[str, Stored]) -> list[Piece]:
    """Return the pieces of all tensors; `tensors` have a name for each layer."""
    layers = 1 + max(int(found[2]) for key in tensors if (found := LAYER.match(key)))
    pieces = []
    for key, weight in tensors.items():
        found = LAYER.match(key)
        if found is not None:
            shape, start = (layers, *weight.shape), (int(found[2]), *(0,) * len(weight.shape))
            pieces.append(Piece(found[1] + found[3], shape, start, weight))
            continue
        shape, start = tuple(weight.shape), (0,) * len(weight.shape)
        if key.endswith(EMBEDDINGS) and (missing := -shape[0] % ROWS_DIVISIBLE_BY):
            zeros = HeldTensor(torch.zeros(missing, shape[1], dtype=weight.dtype))
            shape = (shape[0] + missing, shape[1])
            pieces.append(Piece(key, shape, (shape[0] - missing, 0), zeros))
        pieces.append(Piece(key, shape, start, weight))
    return pieces


def empty_states(tensors: Mapping[str, Stored]) -> list[str]:
    """Return the keys of the states that Megatron looks for beside the weights; all are empty."""
    layers = 1 + max(int(found[2]) for key in tensors if (found := LAYER.match(key)))
    prefix = LANGUAGE_MODEL if any(key.startswith(LANGUAGE_MODEL) for key in tensors) else ""
    whole = [prefix + each for each in STATEFUL] + (list(STATEFUL_PROJECTOR) if prefix else [])
    stacked = [f"{prefix}decoder.layers.{each}" for each in STATEFUL_OF_LAYER]
    return [
        *(f"{key}._extra_state/shard_0_1" for key in whole),
        *(f"{key}._extra_state/shard_{n}_{layers}" for key in stacked for n in range(layers)),
    ]


def by_layer(stored: Mapping[str, DcpTensor], *, vocabulary: int, layers: int) -> dict[str, Stored]:
    """Return a checkpoint's tensors with a name for each layer, and without what is no weight.

    `vocabulary` rows of the embeddings are kept. States of an optimizer are left out. Raises
    `LoadError` for another number of layers than the model's `layers`.
    """
    result: dict[str, Stored] = {}
    for key, tensor in stored.items():
        if key.startswith(OPTIMIZER):
            continue
        if (found := STACK.match(key)) is not None:
            if not tensor.shape or tensor.shape[0] != layers:
                raise LoadError(
                    f"{ascii(key)[:80]} is not of {layers} layers, as config.json says. The two do "
                    "not belong together: copy the model again."
                )
            for layer in range(layers):
                result[f"{found[1]}{layer}.{found[2]}"] = tensor.layer(layer)
        elif key.endswith(EMBEDDINGS):
            result[key] = tensor.first_rows(vocabulary)
        else:
            result[key] = tensor
    return result
