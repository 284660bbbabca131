"""Train the demo's vision tower: what is where, from single shapes to whole scenes.

A soft token of the demo stands for one cell of the picture. While the tower is trained, small
heads on the very vectors that the projector is going to see say for each cell whether a thing has
its centre there and what it is. Shapes: B pictures, S cells per side (C = S * S cells), D width.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from transformers import Gemma3Config, SiglipVisionModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

from gemma3vl_app.finetune.scene_drawing import draw
from gemma3vl_app.finetune.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene, random_scene

logger = logging.getLogger(__name__)

HEADS = {
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "size": len(SIZES),
    "outlined": 2,
    "place": len(PLACES),
}
_PART = 1_000  # pictures that one process draws at a time
NOTHING = -1  # the label of a cell in which no thing has its centre

Pixels = npt.NDArray[np.uint8]  # (N, side, side, 3)
Labels = npt.NDArray[np.int8]  # (N, C, heads)


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: what is drawn, and how long and how fast is learned from it."""

    name: str
    side: int  # pixels
    single: bool  # one thing that fills much of the picture
    pictures: int
    batch: int
    steps: int
    learning_rate: float
    seed: int
    heads: tuple[str, ...] = tuple(HEADS)


# Whole scenes from the start stay at chance for shapes for a long time: single ones come first.
STAGES = (
    Stage(
        *("single", 64, True, 60_000, 128, 1_400, 1e-3),
        seed=1,
        heads=("shape", "colour", "outlined"),  # sizes and places make sense in scenes only
    ),
    Stage("scenes", 192, False, 24_000, 32, 2_000, 8e-4, seed=2),
)


class TowerWithHeads(nn.Module):
    """The demo's tower and projector, with heads that are thrown away after the training."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        vision: Any = config.vision_config  # transformers types it as anything
        self.tower = SiglipVisionModel(vision)
        self.projector = Gemma3MultiModalProjector(config)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(vision.hidden_size, count) for name, count in HEADS.items()}
        )
        self.centre = nn.Linear(vision.hidden_size, 1)
        self.patch: int = vision.patch_size  # pixels a side
        self.patches: int = vision.image_size // self.patch  # a side
        self.pooled = self.patches // math.isqrt(
            config.mm_tokens_per_image or 0
        )  # patches a cell side

    def cells(self, pixels: torch.Tensor, corner: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Return what the projector sees of each cell, (B, C, D), for pixels (B, 3, side, side).

        Smaller pictures lie at `corner`, in patches, of the picture that the tower is made for.
        """
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixels)  # (B, D, n, n)
        side = patches.shape[-1]
        row, column = corner
        table = embeddings.position_embedding.weight.view(self.patches, self.patches, -1)
        positions = table[row : row + side, column : column + side].reshape(side * side, -1)
        hidden = patches.flatten(2).transpose(1, 2) + positions  # (B, n * n, D)
        hidden = self.tower.encoder(inputs_embeds=hidden).last_hidden_state
        hidden = self.tower.post_layernorm(hidden)
        grid = hidden.transpose(1, 2).unflatten(2, (side, side))
        pooled = nn.functional.avg_pool2d(grid, self.pooled).flatten(2).transpose(1, 2)
        normed: torch.Tensor = self.projector.mm_soft_emb_norm(pooled)
        return normed

    def loss(
        self, cells: torch.Tensor, labels: torch.Tensor, heads: Collection[str]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and the share of right answers of some heads; labels (B, C, heads)."""
        there = labels[..., 0] != NOTHING  # (B, C)
        centre = self.centre(cells)[..., 0]  # (B, C)
        weight = torch.tensor(3.0)  # few cells hold a centre
        total = nn.functional.binary_cross_entropy_with_logits(
            centre, there.float(), pos_weight=weight
        )
        right = {"centre": ((centre > 0) == there).all(1).float().mean()}  # whole pictures
        found = cells[there]  # (things, D)
        for number, (name, head) in enumerate(self.heads.items()):
            if name not in heads:
                continue
            wanted = labels[..., number][there].long()
            scores = head(found)
            total = total + nn.functional.cross_entropy(scores, wanted)
            right[name] = (scores.argmax(-1) == wanted).float().mean()
        return total, right


def labels_of(scene: Scene, cells_a_side: int) -> npt.NDArray[np.int8]:
    """Return what each cell is to say, in the order of `HEADS`; (C, heads)."""
    labels = np.full((cells_a_side, cells_a_side, len(HEADS)), NOTHING, dtype=np.int8)
    for thing in scene.things:
        row, column = int(thing.y * cells_a_side), int(thing.x * cells_a_side)
        labels[row, column] = (
            SHAPES.index(thing.shape),
            COLOURS.index(thing.colour),
            SIZES.index(thing.size),
            thing.outlined,
            PLACES.index(thing.place),
        )
    return labels.reshape(-1, len(HEADS))


def drawn(stage: Stage, count: int, seed: int, cell: int) -> tuple[Pixels, Labels]:
    """Draw pictures for a stage, and label their cells of `cell` pixels a side."""
    parts = [(stage, min(_PART, count - at), f"{seed}/{at}", cell) for at in range(0, count, _PART)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        done = list(pool.map(_drawn_part, parts))
    return np.concatenate([each[0] for each in done]), np.concatenate([each[1] for each in done])


def _drawn_part(part: tuple[Stage, int, str, int]) -> tuple[Pixels, Labels]:
    stage, count, seed, cell = part
    rng = random.Random(seed)
    pixels = np.empty((count, stage.side, stage.side, 3), dtype=np.uint8)
    labels = []
    for number in range(count):
        if stage.single:
            scene = random_scene(rng, count=1, scale=1.9)
            picture = draw(scene, rng, side=stage.side)
        else:
            scene = random_scene(rng)
            picture = draw(scene, rng)
        small = picture.resize((stage.side, stage.side), Image.Resampling.BILINEAR)
        pixels[number] = np.asarray(small)
        labels.append(labels_of(scene, stage.side // cell))
    return pixels, np.stack(labels)


def whitened_patches(pixels: Pixels, model: TowerWithHeads) -> None:
    """Start the patch embedding with the principal components of patches, all equally strong.

    Shapes are learned several times sooner than from random filters.
    """
    convolution = model.tower.embeddings.patch_embedding
    size = convolution.kernel_size[0]
    rng = np.random.default_rng(0)
    rows = []
    for picture in pixels[:3000]:
        y, x = rng.integers(0, picture.shape[0] - size + 1, 2)
        rows.append(picture[y : y + size, x : x + size].transpose(2, 0, 1).reshape(-1))
    patches = torch.tensor(np.stack(rows), dtype=torch.float32) / 127.5 - 1
    mean = patches.mean(0)
    _, spread, components = torch.linalg.svd(patches - mean, full_matrices=False)
    width = convolution.out_channels
    scale = math.sqrt(len(patches)) / (spread[:width] + 0.05 * spread[0])
    filters = components[:width] * scale[:, None] * 0.5
    with torch.no_grad():
        convolution.weight.copy_(filters.view_as(convolution.weight))
        assert convolution.bias is not None
        convolution.bias.copy_(-filters @ mean)


def train_stage(
    model: TowerWithHeads, stage: Stage, out: Path, *, first: bool, minutes: float | None = None
) -> dict[str, float]:
    """Train one stage, going on from `out` if it was ended before; returns the last figures.

    Writes a checkpoint every 100 steps. `minutes` ends it earlier.
    """
    cell = model.pooled * model.patch
    began = time.perf_counter()
    pixels, labels = drawn(stage, stage.pictures, stage.seed, cell)
    test_pixels, test_labels = drawn(stage, 512, stage.seed + 1_000_000, cell)
    logger.info("%s: %d pictures, %.0f s", stage.name, len(pixels), time.perf_counter() - began)
    if first:
        whitened_patches(pixels, model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.03
    )
    state_file, step = out / f"{stage.name}.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    figures: dict[str, float] = {}
    began = time.perf_counter()
    while step < stage.steps:
        rng = np.random.default_rng((stage.seed, step))
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _rate(step, stage.steps)
        chosen = rng.integers(0, len(pixels), stage.batch)
        batch, wanted = _flipped(pixels[chosen], labels[chosen], rng)
        places = model.patches - stage.side // model.patch + 1
        row, column = (int(at) // 2 * 2 for at in rng.integers(0, places, 2))
        cells = model.cells(_scaled(batch), (row, column))
        loss, right = model.loss(cells, torch.from_numpy(wanted), stage.heads)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            line = " ".join(f"{name} {value.item():.2f}" for name, value in right.items())
            seconds = time.perf_counter() - began
            logger.info("%s %d loss %.3f %s (%.0f s)", stage.name, step, loss, line, seconds)
        spent = minutes is not None and time.perf_counter() - began > 60 * minutes
        if step % 100 == 0 or step == stage.steps or spent:
            figures = measured(model, test_pixels, test_labels, stage.heads)
            logger.info("%s %d TEST %s", stage.name, step, json.dumps(figures))
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)
        if spent:
            break
    return figures


@torch.no_grad()
def measured(
    model: TowerWithHeads, pixels: Pixels, labels: Labels, heads: Collection[str]
) -> dict[str, float]:
    """Return the share of right answers by head on pictures not trained on."""
    sums: dict[str, float] = {}
    batches = [slice(first, first + 64) for first in range(0, len(pixels), 64)]
    for rows in batches:
        cells = model.cells(_scaled(pixels[rows]))
        _, right = model.loss(cells, torch.from_numpy(labels[rows]), heads)
        for name, value in right.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return {name: round(value / len(batches), 3) for name, value in sums.items()}


def _rate(step: int, steps: int) -> float:
    """Return the learning rate's factor: a rise, a long plateau, a fall at the end."""
    rise, fall = min(1.0, (step + 1) / 50), min(1.0, (steps - step) / (0.35 * steps))
    return rise * max(0.02, fall)


def _scaled(pixels: Pixels) -> torch.Tensor:
    """Return pixels as the tower gets them: (B, 3, side, side), -1 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _flipped(pixels: Pixels, labels: Labels, rng: np.random.Generator) -> tuple[Pixels, Labels]:
    """Mirror half of the pictures from left to right, and what is said about them."""
    side = math.isqrt(labels.shape[1])
    pixels, labels = pixels.copy(), labels.copy()
    mirrored = rng.random(len(pixels)) < 0.5
    pixels[mirrored] = pixels[mirrored, :, ::-1]
    grid = labels[mirrored].reshape(-1, side, side, labels.shape[-1])[:, :, ::-1].copy()
    place = grid[..., -1]
    grid[..., -1] = np.where(place == NOTHING, NOTHING, place // 3 * 3 + 2 - place % 3)
    labels[mirrored] = grid.reshape(-1, side * side, labels.shape[-1])
    return pixels, labels
