"""Train the demo's vision tower: what is where, from single shapes to scenes and to text.

A soft token of the demo stands for one cell of the picture. While the tower is trained, small
heads on the very vectors that the projector is going to see say for each cell whether a thing has
its centre there and what it is. Others say for each patch which parts of it are within a thing,
and of what: shapes are found out much sooner so. Shapes: B pictures, C cells, P patches, D width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import Gemma3Config, SiglipVisionModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

from gemma3vl_app.errors import TrainingError
from gemma3vl_app.finetune.tower_pictures import (
    CELL_CHARACTERS,
    FINE,
    HEADS,
    NOTHING,
    PATCH_CHARACTERS,
    Drawn,
)
from gemma3vl_app.hardware import choose_dtype
from gemma3vl_app.scenes.fonts import CHARACTERS

logger = logging.getLogger(__name__)

_CENTRE_WEIGHT = 8.0  # few cells hold a centre, or are beside one
_LAYERS = "tower.encoder.layers."


class TowerWithHeads(nn.Module):
    """The demo's tower and projector, with heads that are thrown away after the training."""

    def __init__(self, config: Gemma3Config, device: str = "cpu") -> None:
        super().__init__()
        vision: Any = config.vision_config  # transformers types it as anything
        # torch's fused attention is twice as slow backwards on a CPU, for heads this narrow.
        vision._attn_implementation = "eager" if device == "cpu" else "sdpa"
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
        self.to(device)

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.centre.weight.device

    def requires_tower_grad_(self, learns: bool) -> None:
        """Let the tower learn as the heads do, or stay as it is."""
        self.tower.requires_grad_(learns)
        self.projector.requires_grad_(learns)

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

    def look(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the projector sees of whole pictures, (B, C, D)."""
        return self.cells(self.patch_vectors(scaled(pixels)))

    @torch.no_grad()
    def look_at_all(self, pixels: torch.Tensor, at_once: int = 50) -> torch.Tensor:
        """Return what the projector sees of many pictures, some of them computed together."""
        parts = torch.split(pixels, at_once)
        return torch.cat([self.look(each.to(self.device)) for each in parts])

    @torch.no_grad()
    def refit_projector(self, before: torch.Tensor, now: torch.Tensor) -> None:
        """Let the language model get the same vectors of pictures as before, as nearly as it can.

        `before` and `now` are what the tower has seen of the same pictures, (B, C, D) each; the
        projector's matrix becomes the least-squares fit from one to the other, times what it was.
        """
        weight = self.projector.mm_input_projection_weight
        weight.copy_(torch.linalg.lstsq(now.flatten(0, 1), before.flatten(0, 1)).solution @ weight)

    def loss(
        self, drawn: Drawn, heads: Collection[str], corner: tuple[int, int] = (0, 0)
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss on pictures, and the share of right answers of some heads."""
        with quick_arithmetic(self.device):
            patches = self.patch_vectors(scaled(drawn.pixels), corner)
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
            if name in heads and len(found):
                wanted = labels[..., number][there]
                scores = head(found)
                total = total + nn.functional.cross_entropy(scores, wanted)
                right[name] = (scores.argmax(-1) == wanted).float().mean()
        parts = drawn.patches.long()  # (B, P, 2)
        inside = parts[..., 0] != NOTHING
        for number, head in enumerate(self.part_of.values()):
            scores = head(patches[inside])
            if len(scores):
                total = total + nn.functional.cross_entropy(scores, parts[..., number][inside])
        masks = drawn.masks.float() / 255  # (B, P, fine * fine)
        total = total + nn.functional.binary_cross_entropy_with_logits(self.inside(patches), masks)
        if (drawn.patch_characters != NOTHING).any():
            near = _character_loss(self.patch_characters(patches), drawn.patch_characters)
            scores = self.cell_characters(cells)
            labels = claimed_characters(scores.detach(), drawn)
            total = total + near + _character_loss(scores, labels)
            right["text"] = _read_rightly(scores, labels)
        return total, right


def quick_arithmetic(device: torch.device, wanted: bool = True) -> torch.autocast:
    """Return a context in which matrices are multiplied in bf16, where `wanted` and quick."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and _has_bf16(str(device)))


@lru_cache
def _has_bf16(device: str) -> bool:
    return choose_dtype(device)[0] == "bfloat16"


def claimed(centre: torch.Tensor, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each cell is to say, and which cells some thing may belong to.

    Of several that a thing may belong to, the surest has it. No picture of 32 pixels a cell shows
    on which side of a border a centre lies that is within a pixel of it: with fixed labels both
    cells, or neither, would say that the thing is theirs. `centre` (B, C) scores, results (B, C,
    heads) and (B, C).
    """
    labels = drawn.cells.long()
    picture, own = torch.nonzero(labels[..., 0] != NOTHING, as_tuple=True)  # (things,)
    down, across = drawn.neighbours.long()[picture, own].T
    side = math.isqrt(labels.shape[1])
    steps = (torch.zeros_like(own), across, side * down, side * down + across)
    near = own[:, None] + torch.stack(steps, dim=1)  # (things, 4) cells
    scores = centre[picture[:, None], near]
    claimable = torch.zeros_like(labels[..., 0], dtype=torch.bool)
    claimable[picture[:, None], near] = True
    taken = labels[picture[:, None], near, 0] != NOTHING
    scores = scores.masked_fill(taken & (near != own[:, None]), -math.inf)
    chosen = near.gather(1, scores.argmax(1, keepdim=True))[:, 0]
    result = torch.full_like(labels, NOTHING)
    result[picture, chosen] = labels[picture, own]
    return result, claimable


def claimed_characters(scores: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Return which characters each cell is to say, those on borders included; (B, C, slots).

    A character on a border is the last of the cell before it, if that says so itself, and else the
    first of the one behind it: what counts is that both agree. `scores` (B, C, slots * known).
    """
    own, border = drawn.cell_characters.long(), drawn.border_characters.long()
    batch, cells, slots = own.shape
    side = math.isqrt(cells)
    told = scores.view(batch, side, side, slots, -1)  # row, column
    own, border = own.view(batch, side, side, slots), border.view(batch, side, side)
    result, taken = own.clone(), torch.zeros_like(border[..., 0], dtype=torch.bool)
    for column in range(side):
        mine = own[:, :, column]  # (B, side, slots)
        first = border[:, :, column]  # (B, side)
        shifted = torch.cat([first[..., None], mine[..., :-1]], dim=-1)
        mine = torch.where(((first != NOTHING) & ~taken)[..., None], shifted, mine)
        if column + 1 < side:
            next_one = border[:, :, column + 1]
            count = (mine != NOTHING).sum(-1)  # the slot in which it would be
            at = count.clamp(max=slots - 1)[..., None]
            said = told[:, :, column].gather(2, at[..., None].expand(-1, -1, -1, told.shape[-1]))
            wanted = said[:, :, 0].gather(2, next_one[..., None] + 1)[..., 0]  # 0 is none
            taken = (next_one != NOTHING) & (count < slots) & (wanted > said[:, :, 0, 0])
            mine = torch.where(
                taken[..., None] & (torch.arange(slots, device=mine.device) == at),
                next_one[..., None],
                mine,
            )
        result[:, :, column] = mine
    return result.view(batch, cells, slots)


def _character_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss on characters and on where they end.

    Each part says its characters and then that there are no more, both of the same weight: where
    the end weighs less, letters near a border are said by both cells. `scores` (B, parts, slots *
    known), `labels` (B, parts, slots), at least one of which is there.
    """
    wanted = labels.long() + 1  # 0 is none
    scores = scores.view(*wanted.shape, -1)  # (B, parts, slots, known)
    there = wanted > 0
    end = ~there & (there.sum(-1, keepdim=True) == torch.arange(there.shape[-1]).to(there.device))
    said = there | end
    return nn.functional.cross_entropy(scores[said], wanted[said], reduction="sum") / there.sum()


def _read_rightly(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return which share of the cells that hold characters, or say some, say just theirs."""
    wanted = labels.long() + 1  # 0 is none
    told = scores.view(*wanted.shape, -1).argmax(-1)  # (B, C, slots)
    counted = (wanted > 0).any(-1) | (told[..., 0] > 0)
    told = told.where((told > 0).cumprod(-1).bool(), 0)  # what comes after the end is not said
    return (told == wanted).all(-1)[counted].float().mean()


def take_tower(model: TowerWithHeads, state: Mapping[str, torch.Tensor]) -> None:
    """Load a state into `model`: one of before it learned to read has no heads for characters.

    A tower with more layers than the state begins as the state's one: they add nothing at first.
    """
    missing, unexpected = model.load_state_dict(state, strict=False)
    grown = [name for name in missing if name.startswith(_LAYERS)]
    lost = [name for name in missing if "_characters." not in name and name not in grown]
    if lost or unexpected:
        raise TrainingError(
            f"The tower's checkpoint lacks {len(lost)} tensors and has {len(unexpected)} that are "
            "unknown: it is one of another version. Delete it and begin anew."
        )
    for name, parameter in model.named_parameters():
        if name in grown and (".out_proj." in name or ".fc2." in name):
            nn.init.zeros_(parameter)


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels as the tower gets them: (B, 3, side, side), -1 to 1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
