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

from gemma3vl_app.finetune.demo_talks import IGNORED, Pool, Talk
from gemma3vl_app.finetune.demo_tower import quick_arithmetic
from gemma3vl_app.finetune.tower_pictures import NOTHING
from gemma3vl_app.finetune.tower_training import save_checkpoint
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.scenes.fonts import CHARACTERS
from gemma3vl_app.scenes.scene import COLOURS, PLACES, SHAPES, SIZES

logger = logging.getLogger(__name__)

LORA = LoraConfig(
    r=24,
    lora_alpha=48,
    lora_dropout=0.0,
    target_modules=r".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
)
_SAVE_EVERY, _TEST_EVERY = 50, 100  # steps
_DRAWN_IDS = 4096  # tokens of no answer, per step
_LINE_BREAK_ID = 107
_FITTED = 8_000  # pictures, to start the projector with


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

    def hidden(
        self, talks: Sequence[Talk], pool: Pool, padded_to: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors that predict the answers' tokens, (n, D), and those tokens (n,).

        Conversations are padded to a multiple of `padded_to` tokens.
        """
        device = self.embedding.weight.device
        longest = max(len(talk.ids) for talk in talks)
        longest = -(-longest // padded_to) * padded_to
        assert longest <= self._window, "all layers are given the mask of those without a window"
        ids = np.zeros((len(talks), longest), dtype=np.int64)
        labels = np.full((len(talks), longest), IGNORED)
        blocks = np.full((len(talks), longest), -1)
        for row, talk in enumerate(talks):
            ids[row, : len(talk.ids)] = talk.ids
            labels[row, : len(talk.ids)] = talk.labels
            for number, (first, _) in enumerate(talk.pictures):
                blocks[row, first : first + self._soft_tokens] = number
        known = torch.from_numpy(ids).to(device).clamp(max=len(self.embedding.weight) - 1)
        vectors = self.embedding(known)  # (B, L, D), scaled
        block = torch.from_numpy(blocks).to(device)
        numbers = [number for talk in talks for _, number in talk.pictures]
        if numbers:
            cells = pool.cells[torch.tensor(numbers, device=pool.cells.device)].flatten(0, 1)
            soft = cells @ self.projector.mm_input_projection_weight  # (pictures * T, D)
            soft = soft.to(vectors.dtype)
            vectors = vectors.masked_scatter((block >= 0)[..., None], soft)
        places = torch.arange(longest, device=device)
        visible = places[:, None] >= places  # (L, L)
        same = (block[:, :, None] == block[:, None, :]) & (block >= 0)[:, :, None]
        mask = (visible | same)[:, None]  # (B, 1, L, L); padding lies behind and sees only itself
        masks = {"full_attention": mask, "sliding_attention": mask}
        with quick_arithmetic(device, vectors.dtype == torch.bfloat16):
            output = self.language(inputs_embeds=vectors, attention_mask=masks, use_cache=False)
        kept, wanted = labels[:, 1:] != IGNORED, labels[:, 1:]
        hidden = output.last_hidden_state[:, :-1][torch.from_numpy(kept).to(device)]
        return hidden.float(), torch.from_numpy(wanted[kept]).to(device)

    def logits(self, hidden: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Return logits over a part of the vocabulary; hidden (n, D), part (V,), result (n, V)."""
        logits: torch.Tensor = hidden @ self.embedding.weight[part].float().T
        return logits

    def start_projector(self, pool: Pool, tokenizer: TextTokenizer) -> None:
        """Let each soft token begin as the sum of the words for what is in its cell.

        A least-squares fit; the language model then reads pictures nearly from the start.
        """
        labels = pool.labels[:_FITTED]  # (N, C, heads)
        words = [_word_vectors(self.embedding, tokenizer, names) for names in _WORDS]
        device = pool.cells.device
        line_break = self.embedding(torch.tensor(_LINE_BREAK_ID, device=device))
        target = line_break.float().cpu().expand(*labels.shape[:2], -1).clone()
        there = torch.from_numpy(labels[..., 0] != NOTHING)
        found = labels[labels[..., 0] != NOTHING]
        target[there] = sum(
            weight * table[torch.from_numpy(found[:, head]).long()]
            for (head, weight), table in zip(_WEIGHTS, words, strict=True)
        )
        characters = torch.from_numpy(pool.characters[:_FITTED]).long()  # (N, C, slots)
        read = (characters != NOTHING).any(-1)
        table = _word_vectors(self.embedding, tokenizer, CHARACTERS, in_sentence=False)
        for slot, weight in enumerate(_SLOT_WEIGHTS):
            filled = characters[..., slot] != NOTHING
            target[filled] += weight * table[characters[..., slot][filled]]
        cells, target = pool.cells[:_FITTED].cpu().flatten(0, 1), target.flatten(0, 1)
        # Most cells show nothing.
        share = torch.where((there | read).flatten(), 4.0, 1.0)[:, None].sqrt()
        fit = torch.linalg.lstsq(cells * share, target * share).solution
        with torch.no_grad():
            self.projector.mm_input_projection_weight.copy_(fit)


_WORDS = (SHAPES, COLOURS, SIZES, tuple(place.split()[-1] for place in PLACES))
_SLOT_WEIGHTS = (1.0, 0.8, 0.6, 0.45, 0.35, 0.25)  # so that their order can be told
_WEIGHTS = ((0, 1.0), (1, 1.0), (2, 0.5), (4, 0.5))  # number of the head, and its word's share


def _word_vectors(
    embedding: Any,
    tokenizer: TextTokenizer,
    names: Sequence[str],
    *,
    in_sentence: bool = True,
) -> torch.Tensor:
    """Return the scaled embedding of each word, as it stands inside a sentence or alone."""
    space = " " if in_sentence else ""
    ids = [torch.tensor(tokenizer.encode(f"{space}{name}")) for name in names]
    vectors = [embedding(each.to(embedding.weight.device)).mean(0) for each in ids]
    return torch.stack(vectors).float().cpu()


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leg:
    """How long and how fast is learned; `steps` is what the falling learning rate counts with.

    `tested` talks about unseen pictures are looked at now and then. So many conversations
    `at_once` are computed together, padded to a multiple of `padded_to` tokens.
    """

    name: str
    steps: int
    sequences: int = 8
    learning_rate: float = 5e-4
    seed: int = 7
    tested: int = 60
    at_once: int = 4
    padded_to: int = 1
    fall: float = 0.5  # share of the steps, at their end, in which the learning rate falls


def take_finished(reader: Reader, leg: Leg, out: Path) -> bool:
    """Take what a leg has taught, if the checkpoint in `out` is of its end; returns whether."""
    state_file = out / f"{leg.name}.pt"
    if not state_file.exists():
        return False
    device = reader.embedding.weight.device
    state = torch.load(state_file, weights_only=True, map_location=device)
    if state["step"] < leg.steps:
        return False
    _take(reader, state)
    return True


def _take(reader: Reader, state: dict[str, Any]) -> None:
    for name, parameter in reader.trained().items():
        parameter.data.copy_(state["trained"][name])


def train(
    reader: Reader,
    pool: Pool,
    test: Pool,
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
    device = reader.embedding.weight.device
    optimizer = torch.optim.AdamW(
        named.values(),
        lr=leg.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=device.type == "cuda",
    )
    state_file, step = out / f"{leg.name}.pt", first_step
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        _take(reader, state)
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    answers = pool.known_ids()
    began, losses = time.perf_counter(), []
    while step < leg.steps:
        rng = random.Random(f"{leg.seed}/{step}")
        batch = rng.sample(pool.talks, leg.sequences)
        for group in optimizer.param_groups:
            group["lr"] = leg.learning_rate * _rate(step, leg, step - first_step)
        losses.append(_step(reader, pool, batch, answers, leg, step, optimizer))
        step += 1
        if step % 10 == 0:
            seconds = time.perf_counter() - began
            logger.info("%s %d loss %.4f (%.0f s)", leg.name, step, np.mean(losses[-10:]), seconds)
        ended = step == leg.steps or time.perf_counter() - began > 60 * minutes
        if step % _SAVE_EVERY == 0 or ended:
            trained = {name: p.detach() for name, p in named.items()}
            state = {"trained": trained, "optimizer": optimizer.state_dict(), "step": step}
            save_checkpoint(state, state_file)
        if step % _TEST_EVERY == 0 or ended:
            logger.info("%s %d TEST %s", leg.name, step, json.dumps(measured(reader, test, leg)))
        if ended:
            break
    return step


def _step(
    reader: Reader,
    pool: Pool,
    batch: Sequence[Talk],
    answers: torch.Tensor,
    leg: Leg,
    seed: int,
    optimizer: torch.optim.Optimizer,
) -> float:
    others = np.random.default_rng(seed).integers(0, len(reader.embedding.weight) - 1, _DRAWN_IDS)
    part = torch.unique(torch.cat([answers, torch.from_numpy(others)]))  # sorted
    part = part.to(reader.embedding.weight.device)
    losses, count = [], sum(int((talk.labels != IGNORED).sum()) for talk in batch)
    optimizer.zero_grad()
    for group in _by_length(batch, leg.at_once):
        hidden, wanted = reader.hidden(group, pool, leg.padded_to)
        logits = reader.logits(hidden, part)
        loss = nn.functional.cross_entropy(
            logits, torch.searchsorted(part, wanted), reduction="sum"
        )
        torch.autograd.backward(loss / count)
        losses.append(loss.detach())
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    return (torch.stack(losses).sum() / count).item()


def _by_length(batch: Sequence[Talk], at_once: int) -> Iterator[list[Talk]]:
    """Split a batch so that little is padded."""
    ordered = sorted(batch, key=lambda talk: len(talk.ids))
    for first in range(0, len(ordered), at_once):
        yield ordered[first : first + at_once]


@torch.no_grad()
def measured(reader: Reader, pool: Pool, leg: Leg) -> dict[str, float]:
    """Return by kind the share of answers right in every token, each given those before it."""
    right: dict[str, list[bool]] = {}
    part = torch.unique(torch.cat([pool.known_ids(), torch.arange(0, 2000)]))
    part = part.to(reader.embedding.weight.device)
    for group in _by_length(pool.talks[: leg.tested], leg.at_once):
        hidden, wanted = reader.hidden(group, pool, leg.padded_to)
        hit = (part[reader.logits(hidden, part).argmax(-1)] == wanted).cpu()
        lengths = [(kind, last - first) for talk in group for kind, first, last in talk.kinds]
        answers = hit.split([length for _, length in lengths])
        for (kind, _), answer in zip(lengths, answers, strict=True):
            right.setdefault(kind, []).append(bool(answer.all()))
    return {kind: round(sum(each) / len(each), 2) for kind, each in sorted(right.items())}


def _rate(step: int, leg: Leg, since_start: int) -> float:
    """Return the learning rate's factor: a rise in each leg, a plateau, a fall to a twentieth."""
    fall = min(1.0, (leg.steps - step) / (leg.fall * leg.steps))
    return min(1.0, (since_start + 1) / 20) * max(0.05, fall)
