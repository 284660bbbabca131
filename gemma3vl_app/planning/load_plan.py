"""`LoadPlan`: where and how a model goes into memory, and why; values that loading follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DeviceBytes:
    """What one device holds, in bytes, by purpose.

    `kv_global` and `kv_sliding` are the keys and values of both kinds of layers at the wanted
    context and number of sequences; `vision` the activations of the tower at work; `logits` the
    scores over the vocabulary; `reserve` what the runtime and text activations take.
    """

    weights: int = 0
    kv_global: int = 0
    kv_sliding: int = 0
    vision: int = 0
    logits: int = 0
    reserve: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return (
            self.weights
            + self.kv_global
            + self.kv_sliding
            + self.vision
            + self.logits
            + self.reserve
        )


@dataclass(frozen=True, kw_only=True)
class TrainingAdvice:
    """Hardware that Megatron Bridge recommends for fine-tuning a size; `source` says where."""

    nodes: int
    gpus_per_node: int
    source: str

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """Where and how a model is placed; every choice has its reason, fit to show to a person.

    `dtype` is the arithmetic ("bfloat16" or "float32"), `weights` the storage ("bf16", "fp32",
    "w16", "int8", "nf4" or "int4"), `table` that of the embeddings where it is another one than
    the arithmetic's. `fast_paths` allows what is faster and not the same to the last bit.
    `tower_in_pieces` says how the vision tower attends (`loading.tower_attention`), `row_kernels`
    that a few rows at once go through kernels of ours (`loading.compiled_bf16`).
    `device_map` maps module prefixes (transformers 5's in-memory names, "" for all) to "cuda:0",
    "mps", "cpu" or "disk"; "disk" means memory-mapped and computed on the CPU. `bytes_by_device` is
    the forecast, `limits_by_device` what each device has to give. Where the model does not fit,
    `ways` are the nearest ways to make it fit. `context_tokens` is the context that was planned
    for; `training` a recommendation, where one was asked for.
    """

    dtype: str
    weights: str
    table: str = ""
    fast_paths: bool = False
    tower_in_pieces: bool = False
    row_kernels: bool = False
    device_map: Mapping[str, str] = field(default_factory=lambda: {"": "cpu"})
    bytes_by_device: Mapping[str, DeviceBytes] = field(default_factory=dict)
    fits: bool = True
    reasons: tuple[str, ...] = ()
    ways: tuple[str, ...] = ()
    context_tokens: int = 0
    limits_by_device: Mapping[str, int] = field(default_factory=dict)
    training: TrainingAdvice | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data, with the totals by device."""
        plain = dataclasses.asdict(self)
        for device, each in self.bytes_by_device.items():
            plain["bytes_by_device"][device]["total"] = each.total
        return plain
