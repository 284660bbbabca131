"""The demo model's tensors: the base language model with a LoRA merged in, and the trained tower.

The tower, the projector, the LoRA and the configs are package data (`demo_weights/`); the base
comes from `base_270m`. docs/demo-model.md says how they were trained and what they know.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from gemma3vl_app import catalog
from gemma3vl_app.loading.checkpoint import (
    Checkpoint,
    default_sampling,
    in_memory_name,
    open_checkpoint,
    read_json,
    read_tensors,
)

DATA = Path(__file__).parent / "demo_weights"
ADAPTER_PREFIX = "base_model.model."  # peft's own, before the name of the adapted layer


def open_demo(base_folder: Path) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    """Return the demo as one checkpoint and its tensors; `base_folder` holds the 270M base."""
    name = catalog.DEMO.name
    base = open_checkpoint(base_folder, name)
    checkpoint = dataclasses.replace(
        base,
        folder=DATA,
        config=read_json(DATA / "config.json", name),
        preprocessor=read_json(DATA / "preprocessor_config.json", name),
        sampling=default_sampling(read_json(DATA / "generation_config.json", name), name),
    )
    language = {
        key.replace("model.", "model.language_model.", 1): tensor
        for key, tensor in read_tensors(base).items()
    }
    vision = {
        in_memory_name(key): t for key, t in load_file(DATA / "tower_projector.safetensors").items()
    }
    with _one_thread():
        merged = merge_lora(language, DATA)
    return checkpoint, merged | vision


def merge_lora(tensors: dict[str, torch.Tensor], adapter: Path) -> dict[str, torch.Tensor]:
    """Return `tensors` with a peft LoRA folded in: W + (alpha / r) B A, in fp32, then W's dtype.

    `adapter` is a folder with adapter_config.json and adapter_model.safetensors; every adapted
    layer must be in `tensors`, which holds transformers 5's in-memory names.
    """
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"]
    lora = load_file(adapter / "adapter_model.safetensors")
    merged = dict(tensors)
    for key, down in lora.items():
        if not key.endswith(".lora_A.weight"):
            continue
        up = lora[key.replace(".lora_A.", ".lora_B.")]
        target = key.removeprefix(ADAPTER_PREFIX).replace(".lora_A.", ".")
        weight = merged[target]
        delta = scale * (up.float() @ down.float())
        merged[target] = (weight.float() + delta).to(weight.dtype)
    return merged


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute without helper threads: hundreds of small steps would only wait for each other.

    Measured for the merge on busy cores: 0.3 to 0.7 s with one thread, 2 to 11 s with two.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
