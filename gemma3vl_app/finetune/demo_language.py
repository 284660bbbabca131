"""Teach the demo's language model to read what its tower sees: projector and LoRA together.

The tower is frozen and its view of each picture computed once. One sequence is a conversation of
several turns, about one picture or more; only answers are learned. Logits are taken over a part of
the vocabulary, which saves most of their cost: all tokens of the demo's answers, and others drawn
anew at each step, so that none of them grows unnoticed. Shapes: B sequences, L tokens, T soft
tokens of a picture, D width of the language model, V tokens of the vocabulary's part.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Gemma3ForConditionalGeneration

from gemma3vl_app.finetune.demo_talks import IGNORED, Pool, Talk, Talks
from gemma3vl_app.finetune.demo_tower import save_checkpoint
from gemma3vl_app.finetune.fonts import CHARACTERS
from gemma3vl_app.finetune.scenes import COLOURS, PLACES, SHAPES, SIZES
from gemma3vl_app.finetune.tower_pictures import NOTHING
from gemma3vl_app.prompting.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

LORA = LoraConfig(
    r=16,
    lora_alpha=32,
    lora_dropout=0.0,
    target_modules=r".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
)
_DRAWN_IDS = 4096  # tokens of no answer, per step
_LINE_BREAK_ID = 107


# --- the model ------------------------------------------------------------------------------------


class Reader:
    """The whole demo in training: frozen embeddings and tower, learning projector and LoRA."""

    def __init__(self, model: Gemma3ForConditionalGeneration, soft_tokens: int) -> None:
        model.requires_grad_(False)
        self.peft = get_peft_model(model, LORA)  # what is learned is float32, whatever the model is
        inner: Any = model.model  # its layers now have peft's around them
        self.language: Any = inner.language_model
        self.projector: Any = inner.multi_modal_projector
        self.projector.mm_input_projection_weight.requires_grad_(True)
        self.projector.mm_soft_emb_norm.weight.requires_grad_(False)  # in the cells already
        self.embedding: Any = self.language.embed_tokens
        self._soft_tokens = soft_tokens
        self._window: int = self.language.config.sliding_window

    def trained(self) -> dict[str, torch.Tensor]:
        """Return what is trained, by name."""
        return {n: p for n, p in self.peft.named_parameters() if p.requires_grad}

    def hidden(self, talks: Sequence[Talk], pool: Pool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors that predict the answers' tokens, (n, D), and those tokens (n,)."""
        longest = max(len(talk.ids) for talk in talks)
        assert longest <= self._window, "all layers are given the mask of those without a window"
        ids = torch.zeros(len(talks), longest, dtype=torch.long)
        labels = torch.full((len(talks), longest), IGNORED)
        blocks = torch.full((len(talks), longest), -1)
        views = []
        for row, talk in enumerate(talks):
            count = len(talk.ids)
            ids[row, :count] = torch.from_numpy(
                np.minimum(talk.ids, len(self.embedding.weight) - 1)
            )
            labels[row, :count] = torch.from_numpy(talk.labels)
            for number, (first, scene) in enumerate(talk.pictures):
                blocks[row, first : first + self._soft_tokens] = number
                views.append(pool.cells[scene])
        vectors = self.embedding(ids)  # (B, L, D), scaled
        if views:
            soft = torch.cat(views) @ self.projector.mm_input_projection_weight  # (pictures * T, D)
            soft = soft.to(vectors.dtype)
            vectors = vectors.masked_scatter((blocks >= 0)[..., None], soft)
        places = torch.arange(longest)
        visible = places[:, None] >= places  # (L, L)
        same = (blocks[:, :, None] == blocks[:, None, :]) & (blocks >= 0)[:, :, None]
        mask = (visible | same)[:, None]  # (B, 1, L, L); padding lies behind and sees only itself
        masks = {"full_attention": mask, "sliding_attention": mask}
        with torch.autocast("cpu", torch.bfloat16, enabled=vectors.dtype == torch.bfloat16):
            output = self.language(inputs_embeds=vectors, attention_mask=masks, use_cache=False)
        hidden = output.last_hidden_state[:, :-1].reshape(-1, vectors.shape[-1])
        wanted = labels[:, 1:].reshape(-1)
        kept = wanted != IGNORED
        return hidden[kept].float(), wanted[kept]

    def logits(self, hidden: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Return logits over a part of the vocabulary; hidden (n, D), part (V,), result (n, V)."""
        logits: torch.Tensor = hidden @ self.embedding.weight[part].float().T
        return logits

    def start_projector(self, pool: Pool, tokenizer: TextTokenizer) -> None:
        """Let each soft token begin as the sum of the words for what is in its cell.

        A least-squares fit; the language model then reads pictures nearly from the start.
        """
        labels = pool.labels  # (N, C, heads)
        words = [_word_vectors(self.embedding, tokenizer, names) for names in _WORDS]
        target = self.embedding(torch.tensor(_LINE_BREAK_ID)).expand(*labels.shape[:2], -1).clone()
        there = torch.from_numpy(labels[..., 0] != NOTHING)
        found = labels[labels[..., 0] != NOTHING]
        target[there] = sum(
            weight * table[torch.from_numpy(found[:, head]).long()]
            for (head, weight), table in zip(_WEIGHTS, words, strict=True)
        )
        characters = torch.from_numpy(pool.characters).long()  # (N, C, slots)
        read = (characters != NOTHING).any(-1)
        table = _word_vectors(self.embedding, tokenizer, CHARACTERS, in_sentence=False)
        for slot, weight in enumerate(_SLOT_WEIGHTS):
            filled = characters[..., slot] != NOTHING
            target[filled] += weight * table[characters[..., slot][filled]]
        cells, target = pool.cells.flatten(0, 1), target.flatten(0, 1)
        # Most cells show nothing.
        share = torch.where((there | read).flatten(), 4.0, 1.0)[:, None].sqrt()
        fit = torch.linalg.lstsq(cells * share, target * share).solution
        with torch.no_grad():
            self.projector.mm_input_projection_weight.copy_(fit)


_WORDS = (SHAPES, COLOURS, SIZES, tuple(place.split()[-1] for place in PLACES))
_SLOT_WEIGHTS = (1.0, 0.8, 0.6, 0.45, 0.35, 0.25)  # so that their order can be told
_WEIGHTS = ((0, 1.0), (1, 1.0), (2, 0.5), (4, 0.5))  # number of the head, and its word's share


def _word_vectors(
    embedding: nn.Module,
    tokenizer: TextTokenizer,
    names: Sequence[str],
    *,
    in_sentence: bool = True,
) -> torch.Tensor:
    """Return the scaled embedding of each word, as it stands inside a sentence or alone."""
    space = " " if in_sentence else ""
    return torch.stack(
        [embedding(torch.tensor(tokenizer.encode(f"{space}{name}"))).mean(0) for name in names]
    )


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leg:
    """How long and how fast is learned; `steps` is what the falling learning rate counts with.

    `tested` talks about unseen pictures are looked at now and then.
    """

    steps: int
    sequences: int = 8
    learning_rate: float = 5e-4
    seed: int = 7
    tested: int = 60


def train(
    reader: Reader,
    talks: Talks,
    test: Talks,
    leg: Leg,
    out: Path,
    *,
    first_step: int = 0,
    minutes: float,
) -> int:
    """Train until `leg.steps` or for some minutes; returns the number of steps done in all.

    Goes on from the checkpoint in `out`; without one at `first_step`, with the optimizer anew.
    """
    named = reader.trained()
    optimizer = torch.optim.AdamW(
        named.values(), lr=leg.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    state_file, step = out / "language.pt", first_step
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for name, parameter in named.items():
            parameter.data.copy_(state["trained"][name])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    answers = talks.known_ids()
    began, losses = time.perf_counter(), []
    while step < leg.steps:
        rng = random.Random(f"{leg.seed}/{step}")
        batch = [talks.talk(rng) for _ in range(leg.sequences)]
        for group in optimizer.param_groups:
            group["lr"] = leg.learning_rate * _rate(step, leg.steps, step - first_step)
        losses.append(_step(reader, talks.pool, batch, answers, step, optimizer))
        step += 1
        if step % 10 == 0:
            seconds = time.perf_counter() - began
            logger.info("language %d loss %.4f (%.0f s)", step, np.mean(losses[-10:]), seconds)
        ended = step == leg.steps or time.perf_counter() - began > 60 * minutes
        if step % 50 == 0 or ended:
            trained = {name: p.detach() for name, p in named.items()}
            state = {"trained": trained, "optimizer": optimizer.state_dict(), "step": step}
            save_checkpoint(state, state_file)
        if step % 100 == 0 or ended:
            logger.info("language %d TEST %s", step, json.dumps(measured(reader, test, leg.tested)))
        if ended:
            break
    return step


def _step(
    reader: Reader,
    pool: Pool,
    batch: Sequence[Talk],
    answers: torch.Tensor,
    seed: int,
    optimizer: torch.optim.Optimizer,
) -> float:
    others = np.random.default_rng(seed).integers(0, len(reader.embedding.weight) - 1, _DRAWN_IDS)
    part = torch.unique(torch.cat([answers, torch.from_numpy(others)]))  # sorted
    total, count = 0.0, sum(int((talk.labels != IGNORED).sum()) for talk in batch)
    optimizer.zero_grad()
    for group in _by_length(batch):
        hidden, wanted = reader.hidden(group, pool)
        logits = reader.logits(hidden, part)
        loss = nn.functional.cross_entropy(
            logits, torch.searchsorted(part, wanted), reduction="sum"
        )
        torch.autograd.backward(loss / count)
        total += loss.item()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    return total / count


def _by_length(batch: Sequence[Talk], at_once: int = 4) -> Iterator[list[Talk]]:
    """Split a batch so that little is padded."""
    ordered = sorted(batch, key=lambda talk: len(talk.ids))
    for first in range(0, len(ordered), at_once):
        yield ordered[first : first + at_once]


@torch.no_grad()
def measured(reader: Reader, talks: Talks, count: int) -> dict[str, float]:
    """Return by kind the share of answers right in every token, each given those before it."""
    rng = random.Random(99)
    right: dict[str, list[bool]] = {}
    part = torch.unique(torch.cat([talks.known_ids(), torch.arange(0, 2000)]))
    for _ in range(count):
        talk = talks.talk(rng)
        hidden, wanted = reader.hidden([talk], talks.pool)
        hit = part[reader.logits(hidden, part).argmax(-1)] == wanted
        done = 0
        for kind, first, last in talk.kinds:
            length = last - first
            right.setdefault(kind, []).append(bool(hit[done : done + length].all()))
            done += length
    return {kind: round(sum(each) / len(each), 2) for kind, each in sorted(right.items())}


def _rate(step: int, steps: int, since_start: int) -> float:
    """Return the learning rate's factor: a rise in each leg, a plateau, a fall to a twentieth."""
    return min(1.0, (since_start + 1) / 20) * max(0.05, min(1.0, (steps - step) / (0.5 * steps)))
