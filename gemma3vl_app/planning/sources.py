"""`plan`: the plan for a model by name, hub id or folder, before anything is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gemma3vl_app import catalog, hardware
from gemma3vl_app.errors import LoadError
from gemma3vl_app.hardware import Machine
from gemma3vl_app.planning.load_plan import LoadPlan, TrainingAdvice
from gemma3vl_app.planning.plan import DEFAULT_CONTEXT_TOKENS, plan_for

# Megatron Bridge's recipes, SFT and LoRA alike; 27B is for SFT over two nodes.
MEGATRON_BRIDGE = "https://docs.nvidia.com/nemo/megatron-bridge/latest/models/vlm/gemma3-vl.html"
TRAINING = {
    "4b": TrainingAdvice(nodes=1, gpus_per_node=8, source=MEGATRON_BRIDGE),
    "12b": TrainingAdvice(nodes=1, gpus_per_node=8, source=MEGATRON_BRIDGE),
    "27b": TrainingAdvice(nodes=2, gpus_per_node=8, source=MEGATRON_BRIDGE),
}


def plan(
    source: str | Path,
    *,
    weights: str = "auto",
    device_map: str | Mapping[str, str] = "auto",
    max_memory: Mapping[str, str | int] | None = None,
    context_tokens: int | None = DEFAULT_CONTEXT_TOKENS,
    images: int = 1,
    sequences: int = 1,
    train: bool | None = None,
    fast_paths: bool = True,
    machine: Machine | None = None,
) -> LoadPlan:
    """Return how `source` would be loaded: precision, places, bytes by device, and why.

    Downloads nothing and needs no torch. `source` is a name of the catalog, a folder that is here,
    or the hub id of a model that was downloaded. With `max_memory` ({"cuda:0": "24GiB", "cpu":
    "64GiB"}) only the devices it names exist; without it, those of `machine` (None: this one).
    `fast_paths` allows what is faster but not the reference to the last bit. `train` adds the
    hardware that Megatron Bridge recommends for fine-tuning. Raises `LoadError` for an unknown
    model or wish; a model that does not fit is no error: see `LoadPlan.fits` and `.ways`.
    """
    name, config, size = described(source)
    if machine is None:
        machine = Machine() if max_memory is not None else hardware.detect_without_torch()
    if context_tokens == DEFAULT_CONTEXT_TOKENS:
        context_tokens = None  # or less, where the model's own is shorter
    found = plan_for(
        config,
        name=name,
        machine=machine,
        weights=weights,
        device_map=device_map,
        max_memory=max_memory,
        context_tokens=context_tokens,
        images=images,
        sequences=sequences,
        fast_paths=fast_paths,
    )
    smaller = partial(
        plan_for,
        machine=machine,
        max_memory=max_memory,
        context_tokens=context_tokens,
        images=images,
        sequences=sequences,
        fast_paths=fast_paths,
    )
    if not found.fits and (way := _smaller(size, name, smaller)):
        found = replace(found, ways=(*found.ways[:2], way))
    return replace(found, training=_training(size, name)) if train else found


def described(source: str | Path) -> tuple[str, dict[str, Any], str]:
    """Return a model's name, its config and (where it is Google's) its size.

    Raises `LoadError` where that is not known without a download, and for a GGUF file.
    """
    catalog.check_source(source)
    if entry := catalog.find(str(source)):
        return entry.name, catalog.published_config(entry.size), entry.size
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve().name, _read_config(path / "config.json"), ""
    if path.suffix.lower() == ".gguf":
        raise LoadError(
            f"A GGUF file such as {path.name!r} can be loaded, but not planned before it is "
            "converted. Plan with the model's name instead: gemma3vl plan 4b-it."
        )
    cached = _downloaded_config(str(source))
    if cached is None:
        raise LoadError(
            f"{source} is not in the catalog and was never downloaded here, so its config.json is "
            "not known. Plan with the size it was made from, such as 4b-it."
        )
    return str(source), _read_config(cached), ""


def _downloaded_config(repo: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(repo, "config.json")
    except ValueError:  # no repository can have such a name
        return None
    return Path(cached) if isinstance(cached, str) else None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{path.name} is missing or not readable JSON. Copy it again.") from error
    if not isinstance(config, dict):
        raise LoadError(f"{path.name} is not a JSON object. Copy it again.")
    return config


def _smaller(size: str, name: str, plan_other: Callable[..., LoadPlan]) -> str | None:
    """Return the largest smaller model of the same kind that fits, as a way."""
    sizes = ["27b", "12b", "4b"]
    for other in sizes[sizes.index(size) + 1 :] if size in sizes else ():
        smaller = plan_other(catalog.published_config(other), name=other)
        if smaller.fits:
            return f"the smaller model {name.replace(size, other, 1)}, in {smaller.weights}"
    return None


def _training(size: str, name: str) -> TrainingAdvice:
    if size not in TRAINING:
        raise LoadError(f"There is no training advice for {name!r}: only for 4B, 12B and 27B.")
    return TRAINING[size]
