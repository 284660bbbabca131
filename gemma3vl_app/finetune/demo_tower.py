"""Train the demo's vision tower: what is where, from single shapes to scenes and to text.

A soft token of the demo stands for one cell of the picture. While the tower is trained, small
heads on the very vectors that the projector is going to see say for each cell whether a thing has
its centre there and what it is. Others say for each patch which parts of it are within a thing,
and of what: shapes are found out much sooner so. Shapes: B pictures, C cells, P patches, D width.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Gemma3Config, SiglipVisionModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

from gemma3vl_app.errors import TrainingError
from gemma3vl_app.finetune.fonts import CHARACTERS
from gemma3vl_app.finetune.tower_pictures import (
    CELL_CHARACTERS,
    FINE,
    HEADS,
    NOTHING,
    PATCH_CHARACTERS,
    Drawn,
    Labels,
    Pixels,
    Stage,
    draw_stage,
    flipped,
)
from gemma3vl_app.hardware import choose_dtype

logger = logging.getLogger(__name__)

_WAVES_TO_PATCHES = 1 / 3  # how strong positions begin beside what patches look like
_CENTRE_WEIGHT = 8.0  # few cells hold a centre, or are beside one
_NO_CHARACTER_WEIGHT = 0.5  # many places hold none
_TEST_PICTURES, _TEST_SEEDS = 512, 1_000_000
_SAVE_EVERY = 100  # steps

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

# What comes after it, to read: mixed with scenes, so that these are not forgotten.
READING_STAGES = (
    Stage(
        *("letters", 64, True, 120_000, 64, 4_000, 1e-3),
        seed=4,
        heads=("shape", "colour", "outlined"),
        kinds=(("scene", 0.3), ("print", 0.7)),
    ),
    Stage(
        *("reading", 224, False, 30_000, 32, 3_000, 8e-4),
        seed=5,
        kinds=(("scene", 0.4), ("print", 0.45), ("chart", 0.15)),
    ),
)


class TowerWithHeads(nn.Module):
    """The demo's tower and projector, with heads that are thrown away after the training."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        vision: Any = config.vision_config  # transformers types it as anything
        # torch's fused attention is twice as slow backwards on a CPU, for heads this narrow.
        vision._attn_implementation = "eager"
        self.tower = SiglipVisionModel(vision)
        self.projector = Gemma3MultiModalProjector(config)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(vision.hidden_size, count) for name, count in HEADS.items()}
        )
        self.centre = nn.Linear(vision.hidden_size, 1)
        self.part_of = nn.ModuleDict(
            {name: nn.Linear(vision.hidden_size, HEADS[name]) for name in ("shape", "colour")}
        )
        self.patch: int = vision.patch_size  # pixels a side
        self.inside = nn.Linear(vision.hidden_size, FINE * FINE)
        known = len(CHARACTERS) + 1  # 0 is none
        self.cell_characters = nn.Linear(vision.hidden_size, CELL_CHARACTERS * known)
        self.patch_characters = nn.Linear(vision.hidden_size, PATCH_CHARACTERS * known)
        self.patches: int = vision.image_size // self.patch  # a side
        self.pooled = self.patches // math.isqrt(
            config.mm_tokens_per_image or 0
        )  # patches a cell side

    def patch_vectors(self, pixels: torch.Tensor, corner: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Return the tower's output, (B, P, D), for pixels (B, 3, side, side).

        Smaller pictures lie at `corner`, in patches, of the picture that the tower is made for.
        """
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixels)  # (B, D, n, n)
        side = patches.shape[-1]
        row, column = corner
        table = embeddings.position_embedding.weight.view(self.patches, self.patches, -1)
        positions = table[row : row + side, column : column + side].reshape(side * side, -1)
        hidden = patches.flatten(2).transpose(1, 2) + positions  # (B, P, D)
        hidden = self.tower.encoder(inputs_embeds=hidden).last_hidden_state
        normed: torch.Tensor = self.tower.post_layernorm(hidden)
        return normed

    def cells(self, patches: torch.Tensor) -> torch.Tensor:
        """Return what the projector sees of each cell, (B, C, D), from patches (B, P, D)."""
        side = math.isqrt(patches.shape[1])
        grid = patches.transpose(1, 2).reshape(len(patches), -1, side, side)  # (B, D, n, n)
        pooled = nn.functional.avg_pool2d(grid, self.pooled).flatten(2).transpose(1, 2)
        normed: torch.Tensor = self.projector.mm_soft_emb_norm(pooled)
        return normed

    def look(self, pixels: Pixels) -> torch.Tensor:
        """Return what the projector sees of whole pictures, (B, C, D)."""
        return self.cells(self.patch_vectors(_scaled(pixels)))

    def loss(
        self, drawn: Drawn, heads: Collection[str], corner: tuple[int, int] = (0, 0)
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss on pictures, and the share of right answers of some heads."""
        with quick_arithmetic():
            patches = self.patch_vectors(_scaled(drawn.pixels), corner)
        patches = patches.float()
        cells = self.cells(patches)
        centre = self.centre(cells)[..., 0]  # (B, C)
        labels, claimable = claimed(centre.detach(), drawn)  # (B, C, heads), (B, C)
        there = labels[..., 0] != NOTHING  # (B, C)
        total = nn.functional.binary_cross_entropy_with_logits(
            centre, there.float(), weight=torch.where(claimable, _CENTRE_WEIGHT, 1.0)
        )
        right = {"centre": ((centre > 0) == there).all(1).float().mean()}  # whole pictures
        found = cells[there]  # (things, D)
        for number, (name, head) in enumerate(self.heads.items()):
            if name in heads:
                wanted = labels[..., number][there]
                scores = head(found)
                total = total + nn.functional.cross_entropy(scores, wanted)
                right[name] = (scores.argmax(-1) == wanted).float().mean()
        parts = torch.from_numpy(drawn.patches).long()  # (B, P, 2)
        inside = parts[..., 0] != NOTHING
        for number, head in enumerate(self.part_of.values()):
            scores = head(patches[inside])
            total = total + nn.functional.cross_entropy(scores, parts[..., number][inside])
        masks = torch.from_numpy(drawn.masks).float() / 255  # (B, P, fine * fine)
        total = total + nn.functional.binary_cross_entropy_with_logits(self.inside(patches), masks)
        if (drawn.patch_characters != NOTHING).any():
            near, _ = _character_loss(self.patch_characters(patches), drawn.patch_characters)
            read, right["characters"] = _character_loss(
                self.cell_characters(cells), drawn.cell_characters
            )
            total = total + near + read
        return total, right


def quick_arithmetic() -> torch.autocast:
    """Return a context in which matrices are multiplied in bf16 where the processor has it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=choose_dtype("cpu")[0] == "bfloat16")


def claimed(centre: torch.Tensor, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each cell is to say, and which cells some thing may belong to.

    Of several that a thing may belong to, the surest has it. No picture of 32 pixels a cell shows
    on which side of a border a centre lies that is within a pixel of it: with fixed labels both
    cells, or neither, would say that the thing is theirs. `centre` (B, C) scores, results (B, C,
    heads) and (B, C).
    """
    labels = torch.from_numpy(drawn.cells).long()
    picture, own = torch.nonzero(labels[..., 0] != NOTHING, as_tuple=True)  # (things,)
    down, across = torch.from_numpy(drawn.neighbours).long()[picture, own].T
    side = math.isqrt(labels.shape[1])
    steps = (torch.zeros_like(own), across, side * down, side * down + across)
    near = own[:, None] + torch.stack(steps, dim=1)  # (things, 4) cells
    scores = centre[picture[:, None], near]
    claimable = torch.zeros_like(labels[..., 0], dtype=torch.bool)
    claimable[picture[:, None], near] = True
    taken = labels[picture[:, None], near, 0] != NOTHING
    scores = scores.masked_fill(taken & (near != own[:, None]), -math.inf)
    chosen = near[torch.arange(len(own)), scores.argmax(1)]
    result = torch.full_like(labels, NOTHING)
    result[picture, chosen] = labels[picture, own]
    return result, claimable


def _character_loss(scores: torch.Tensor, labels: Labels) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss on characters, and the share of those told rightly.

    `scores` (B, parts, slots * known), `labels` (B, parts, slots), at least one of which is there.
    """
    wanted = torch.from_numpy(labels).long() + 1  # 0 is none
    scores = scores.view(*wanted.shape, -1)  # (B, parts, slots, known)
    there = wanted > 0
    found, none = scores[there], scores[~there]
    loss = nn.functional.cross_entropy(found, wanted[there])
    loss = loss + _NO_CHARACTER_WEIGHT * nn.functional.cross_entropy(none, wanted[~there])
    return loss, (found.argmax(-1) == wanted[there]).float().mean()


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


@torch.no_grad()
def put_places_in(model: TowerWithHeads, pixels: Pixels) -> None:
    """Replace the position embeddings by waves, a third as strong as what patches look like.

    Single shapes lie anywhere, so their stage teaches the tower to pass over its tiny random
    positions; with those it had not found out where things are after 600 steps of whole scenes.
    """
    embeddings = model.tower.embeddings
    strength = embeddings.patch_embedding(_scaled(pixels)).std() * _WAVES_TO_PATCHES
    table = embeddings.position_embedding.weight
    table.copy_(strength * places_as_waves(model.patches, table.shape[1]))


def train_stage(
    model: TowerWithHeads, stage: Stage, out: Path, *, first: bool, first_step: int = 0
) -> None:
    """Train one stage; the first one begins with `whitened_patches`.

    Goes on from the checkpoint in `out`; without one at `first_step`, with the optimizer anew.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.03
    )
    state_file, step = out / f"{stage.name}.pt", first_step
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        take_tower(model, state["model"])
        step = state["step"]
        if step == stage.steps:
            return
        optimizer.load_state_dict(state["optimizer"])
    began = time.perf_counter()
    sizes = {"patch": model.patch, "pooled": model.pooled}
    drawn = draw_stage(stage, stage.pictures, stage.seed, **sizes)
    test = draw_stage(stage, _TEST_PICTURES, stage.seed + _TEST_SEEDS, **sizes)
    logger.info("%s: drawn in %.0f s", stage.name, time.perf_counter() - began)
    if first and step == 0:
        whitened_patches(drawn.pixels, model)
    if stage.places and step == 0:
        put_places_in(model, drawn.pixels[:200])
    began = time.perf_counter()
    while step < stage.steps:
        rng = np.random.default_rng((stage.seed, step))
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _rate(step, stage.steps, step - first_step)
        batch = flipped(drawn[rng.integers(0, stage.pictures, stage.batch)], rng)
        room = model.patches - stage.side // model.patch + 1
        row, column = (int(at) // model.pooled * model.pooled for at in rng.integers(0, room, 2))
        loss, right = model.loss(batch, stage.heads, (row, column))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            line = " ".join(f"{name} {value.item():.2f}" for name, value in right.items())
            seconds = time.perf_counter() - began
            logger.info("%s %d loss %.3f %s (%.0f s)", stage.name, step, loss, line, seconds)
        if step % _SAVE_EVERY == 0 or step == stage.steps:
            figures = measured(model, test, stage.heads)
            logger.info("%s %d TEST %s", stage.name, step, json.dumps(figures))
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save_checkpoint(state, state_file)


def take_tower(model: TowerWithHeads, state: Mapping[str, torch.Tensor]) -> None:
    """Load a state into `model`; one of before it learned to read has no heads for characters."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    lost = [name for name in missing if "_characters." not in name]
    if lost or unexpected:
        raise TrainingError(
            f"The tower's checkpoint lacks {len(lost)} tensors and has {len(unexpected)} that are "
            "unknown: it is one of another version. Delete it and begin anew."
        )


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


def _rate(step: int, steps: int, since_start: int) -> float:
    """Return the learning rate's factor: a rise in each leg, a long plateau, a fall at the end."""
    rise, fall = min(1.0, (since_start + 1) / 50), min(1.0, (steps - step) / (0.35 * steps))
    return rise * max(0.02, fall)


def _scaled(pixels: Pixels) -> torch.Tensor:
    """Return pixels as the tower gets them: (B, 3, side, side), -1 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
