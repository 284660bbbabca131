"""The training of the demo's vision tower, stage by stage: `demo_tower` has what is trained.

Each stage goes on where it was ended, from a checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Collection
from concurrent.futures import Executor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gemma3vl_app.finetune.demo_tower import TowerWithHeads, scaled, take_tower
from gemma3vl_app.finetune.tower_drawing import Drawing, draw_stage
from gemma3vl_app.finetune.tower_pictures import Drawn, Stage, flipped

logger = logging.getLogger(__name__)

_WAVES_TO_PATCHES = 1 / 3  # how strong positions begin beside what patches look like
_TEST_PICTURES, _TEST_SEEDS = 512, 1_000_000
_SAVE_EVERY, _TOLD_EVERY = 100, 20  # steps
_AT_ONCE = 32  # pictures computed together on a CPU: more do not fit in its caches

# Whole scenes from the start stay at chance for shapes for a long time: single ones come first.
STAGES = (
    Stage(
        *("black", 64, True, 20_000, 64, 600, 1e-3),
        seed=3,
        heads=("shape",),
        black=True,
    ),
    Stage(
        *("single", 64, True, 120_000, 64, 5_000, 1e-3),
        seed=1,
        heads=("shape", "colour", "outlined"),  # sizes and places make sense in scenes only
    ),
    Stage("scenes", 224, False, 24_000, 32, 2_000, 8e-4, seed=2, places=True),
    Stage("centres", 224, False, 30_000, 32, 2_400, 6e-4, seed=6),
)

# What comes after it, with more layers, to read: mixed with scenes, which are learned on as well.
# Sized for a GPU, where a step of either takes 50 ms; on 2 cores one of the last takes 6 s.
READING_STAGES = (
    Stage(
        *("letters", 64, True, 150_000, 4 * 64, 600, 1e-3),
        seed=4,
        at_first=0.1,
        heads=("shape", "colour", "outlined"),
        kinds=(("scene", 0.3), ("print", 0.7)),
    ),
    Stage(
        *("reading", 224, False, 260_000, 192, 4_361, 8e-4),
        seed=5,
        at_first=0.05,
        kinds=(("scene", 0.46), ("print", 0.46), ("chart", 0.08)),
    ),
    # Sized for 2 cores with bf16 arithmetic; begins with a finished tower also, which has no heads.
    Stage(
        *("reading on", 224, False, 22_000, 128, 830, 5e-4),
        seed=16,
        at_first=0.1,
        kinds=(("scene", 0.2), ("print", 0.25), ("page", 0.5), ("chart", 0.05)),
        fall=0.75,
        heads_alone=150,
    ),
    Stage(
        *("each letter once", 224, False, 11_000, 128, 300, 5e-4),
        seed=18,
        at_first=0.1,
        kinds=(("scene", 0.15), ("print", 0.35), ("page", 0.45), ("chart", 0.05)),
        fall=0.85,
    ),
    Stage(
        *("still reading", 224, False, 22_000, 128, 900, 5e-4),
        seed=19,
        at_first=0.1,
        kinds=(("scene", 0.15), ("print", 0.35), ("page", 0.45), ("chart", 0.05)),
        fall=0.8,
        heads_alone=100,
    ),
)


# --- how it begins --------------------------------------------------------------------------------


def places_as_waves(side: int, width: int) -> torch.Tensor:
    """Return a vector for each place of a square, row by row; (side * side, width).

    Sines and cosines of both coordinates, slow and fast ones (Vaswani et al. 2017, for an image).
    Of a standard deviation of 1.
    """
    count = width // 4
    lengths = torch.logspace(math.log10(4), math.log10(4 * side), count)  # of the waves, in patches
    turns = 2 * math.pi * torch.arange(side)[:, None] / lengths  # (side, count)
    waves = torch.cat([turns.sin(), turns.cos()], dim=1)  # (side, width / 2)
    rows = waves[:, None].expand(-1, side, -1)
    columns = waves[None].expand(side, -1, -1)
    table = torch.cat([rows, columns], dim=-1).reshape(side * side, width)
    return table / table.std()


def whitened_patches(pixels: torch.Tensor, model: TowerWithHeads) -> None:
    """Start the patch embedding with the principal components of patches, all equally strong.

    Shapes are learned several times sooner than from random filters.
    """
    convolution = model.tower.embeddings.patch_embedding
    size = convolution.kernel_size[0]
    rng = np.random.default_rng(0)
    rows = []
    for picture in pixels[:3000].cpu().numpy():
        y, x = rng.integers(0, picture.shape[0] - size + 1, 2)
        rows.append(picture[y : y + size, x : x + size].transpose(2, 0, 1).reshape(-1))
    patches = torch.tensor(np.stack(rows), dtype=torch.float32) / 127.5 - 1
    mean = patches.mean(0)
    _, spread, components = torch.linalg.svd(patches - mean, full_matrices=False)
    width = convolution.out_channels
    scale = math.sqrt(len(patches)) / (spread[:width] + 0.05 * spread[0])
    filters = components[:width] * scale[:, None] * 0.5
    with torch.no_grad():
        convolution.weight.copy_(filters.view(convolution.weight.shape))
        assert convolution.bias is not None
        convolution.bias.copy_(-filters @ mean)


@torch.no_grad()
def put_places_in(model: TowerWithHeads, pixels: torch.Tensor) -> None:
    """Replace the position embeddings by waves, a third as strong as what patches look like.

    Single shapes lie anywhere, so their stage teaches the tower to pass over its tiny random
    positions; with those it had not found out where things are after 600 steps of whole scenes.
    """
    embeddings = model.tower.embeddings
    strength = embeddings.patch_embedding(scaled(pixels)).std() * _WAVES_TO_PATCHES
    table = embeddings.position_embedding.weight
    table.copy_(strength * places_as_waves(model.patches, table.shape[1]))


# --- a stage --------------------------------------------------------------------------------------


def train_stage(
    model: TowerWithHeads,
    stage: Stage,
    out: Path,
    executor: Executor,
    *,
    first: bool,
    first_step: int = 0,
) -> None:
    """Train one stage on what `executor` draws; the first one begins with `whitened_patches`.

    Goes on from the checkpoint in `out`; without one at `first_step`, with the optimizer anew.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=stage.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.03,
        fused=model.device.type == "cuda",
    )
    state_file, step = out / f"{stage.name}.pt", first_step
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=model.device)
        take_tower(model, state["model"])
        step = state["step"]
        if step == stage.steps:
            return
        optimizer.load_state_dict(state["optimizer"])
    sizes = {"patch": model.patch, "pooled": model.pooled}
    drawing = Drawing(stage, device=model.device, executor=executor, **sizes)
    try:
        if first and step == 0:
            whitened_patches(drawing.first(stage.available(0)).pixels, model)
        if stage.places and step == 0:
            put_places_in(model, drawing.first(stage.available(0)).pixels[:200])
        _steps(model, stage, drawing, optimizer, state_file, (first_step, step))
    finally:
        drawing.close()


def _steps(
    model: TowerWithHeads,
    stage: Stage,
    drawing: Drawing,
    optimizer: torch.optim.Optimizer,
    state_file: Path,
    begun: tuple[int, int],
) -> None:
    first_step, step = begun
    test: Drawn | None = None
    began = time.perf_counter()
    while step < stage.steps:
        rng = np.random.default_rng((stage.seed, step))
        with_tower = step >= stage.heads_alone
        model.requires_tower_grad_(with_tower)
        since_start = step - (max(first_step, stage.heads_alone) if with_tower else first_step)
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _rate(step, stage, since_start)
        there = stage.available(step)
        chosen = torch.from_numpy(rng.integers(0, there, stage.batch)).to(model.device)
        batch = flipped(drawing.first(there)[chosen], rng)
        room = model.patches - stage.side // model.patch + 1
        row, column = (int(at) // model.pooled * model.pooled for at in rng.integers(0, room, 2))
        optimizer.zero_grad()
        at_once = _AT_ONCE if model.device.type == "cpu" else stage.batch
        parts = [slice(first, first + at_once) for first in range(0, stage.batch, at_once)]
        for rows in parts:
            loss, right = model.loss(batch[rows], stage.heads, (row, column))
            torch.autograd.backward(loss / len(parts))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % _TOLD_EVERY == 0:
            line = " ".join(f"{name} {value.item():.2f}" for name, value in right.items())
            seconds = time.perf_counter() - began
            logger.info("%s %d loss %.3f %s (%.0f s)", stage.name, step, loss.item(), line, seconds)
        if step % _SAVE_EVERY == 0 or step == stage.steps:
            test = test or _test_pictures(model, stage)
            figures = measured(model, test, stage.heads)
            logger.info("%s %d TEST %s", stage.name, step, json.dumps(figures))
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save_checkpoint(state, state_file)


def _test_pictures(model: TowerWithHeads, stage: Stage) -> Drawn:
    sizes = {"patch": model.patch, "pooled": model.pooled}
    drawn = draw_stage(stage, _TEST_PICTURES, stage.seed + _TEST_SEEDS, **sizes)
    return Drawn(*(getattr(drawn, field.name).to(model.device) for field in fields(Drawn)))


def save_checkpoint(state: dict[str, Any], file: Path) -> None:
    """Write a checkpoint so that an end at any moment leaves the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    torch.save(state, new)
    new.replace(file)


@torch.no_grad()
def measured(model: TowerWithHeads, drawn: Drawn, heads: Collection[str]) -> dict[str, float]:
    """Return the share of right answers by head on pictures not trained on."""
    sums: dict[str, float] = {}
    batches = [slice(first, first + 64) for first in range(0, len(drawn.pixels), 64)]
    for rows in batches:
        _, right = model.loss(drawn[rows], heads)
        for name, value in right.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return {name: round(value / len(batches), 3) for name, value in sums.items()}


def _rate(step: int, stage: Stage, since_start: int) -> float:
    """Return the learning rate's factor: a rise in each leg, a plateau, a fall at the end."""
    rise = min(1.0, (since_start + 1) / 50)
    fall = min(1.0, (stage.steps - step) / (stage.fall * stage.steps))
    return rise * max(0.02, fall)
