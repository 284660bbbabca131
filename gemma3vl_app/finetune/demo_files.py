"""The demo's trained files: those that are shipped, and those from which training goes on.

All in bf16. `training.json` says how far the training is, and has the SHA-256 of the others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from gemma3vl_app.finetune.demo_language import Reader
from gemma3vl_app.finetune.demo_tower import TowerWithHeads, take_tower
from gemma3vl_app.loading.checkpoint import read_json

TOWER, ADAPTER, STATE = "tower_projector.safetensors", "adapter_model.safetensors", "training.json"
UNFINISHED = "tower_training.safetensors"  # the tower with its heads, until it is finished

_TOWER_PREFIX, _PROJECTOR_PREFIX = "vision_tower.vision_model.", "multi_modal_projector."


def write_unfinished(tower: TowerWithHeads, out: Path, stage: str, step: int) -> None:
    """Write a tower whose training goes on elsewhere."""
    _write(out, {UNFINISHED: tower.state_dict()}, {"stage": stage, "step": step})


def write_demo(
    reader: Reader, tower: TowerWithHeads, out: Path, state: dict[str, str | int]
) -> None:
    """Write what is shipped: tower, projector and LoRA under the hub's names, and the state."""
    tensors = {f"{_TOWER_PREFIX}{key}": t for key, t in tower.tower.state_dict().items()}
    projector = reader.projector.state_dict()
    tensors |= {f"{_PROJECTOR_PREFIX}{key}": t for key, t in projector.items()}
    adapter = get_peft_model_state_dict(reader.peft)
    adapter = {key: t for key, t in adapter.items() if ".lora_" in key}
    _write(out, {TOWER: tensors, ADAPTER: adapter}, state)
    (out / UNFINISHED).unlink(missing_ok=True)


def _write(
    out: Path, files: Mapping[str, Mapping[str, torch.Tensor]], state: dict[str, Any]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        rounded = {key: t.detach().to(torch.bfloat16).contiguous() for key, t in tensors.items()}
        save_file(rounded, out / name, metadata={"format": "pt"})
    state = {**state, "sha256": {name: sha256(out / name) for name in files}}
    (out / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def sha256(file: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_state(folder: Path) -> dict[str, Any]:
    """Return the stage and step that training has reached, and the files' hashes."""
    return read_json(folder / STATE, "demo")


def load_unfinished(tower: TowerWithHeads, folder: Path) -> None:
    """Take a tower with its heads from where its training was left."""
    take_tower(tower, {key: t.float() for key, t in load_file(folder / UNFINISHED).items()})


def load_tower(tower: TowerWithHeads, folder: Path) -> None:
    """Take tower and projector from shipped files.

    Positions are stretched where the tower is for larger pictures now than when it was trained.
    """
    tensors = {key: t.float() for key, t in load_file(folder / TOWER).items()}
    name = f"{_TOWER_PREFIX}embeddings.position_embedding.weight"
    tensors[name] = stretched(tensors[name], tower.patches)
    for prefix, module in ((_TOWER_PREFIX, tower.tower), (_PROJECTOR_PREFIX, tower.projector)):
        own = {key: t for key, t in tensors.items() if key.startswith(prefix)}
        module.load_state_dict({key.removeprefix(prefix): t for key, t in own.items()})


def stretched(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Return vectors for side * side places from those of another square; (n * n, D)."""
    old = math.isqrt(len(positions))
    if old == side:
        return positions
    grid = positions.T.reshape(1, -1, old, old)
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].T


def load_adapter(reader: Reader, folder: Path) -> None:
    """Take the LoRA from shipped files; the projector comes with `load_tower`."""
    adapter = {key: t.float() for key, t in load_file(folder / ADAPTER).items()}
    set_peft_model_state_dict(reader.peft, adapter)
