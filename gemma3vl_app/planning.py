"""How a model goes into memory, and why: the plan that loading follows and people read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """Where and how a model is placed; every choice has its reason, fit to show to a person.

    `dtype` is the arithmetic ("bfloat16" or "float32"), `weights` the storage ("bf16" or "fp32"),
    `device_map` maps module prefixes to devices, `bytes_by_device` the forecast of resident
    weights.
    """

    dtype: str
    weights: str
    device_map: Mapping[str, str] = field(default_factory=lambda: {"": "cpu"})
    bytes_by_device: Mapping[str, int] = field(default_factory=dict)
    fits: bool = True
    reasons: tuple[str, ...] = ()
