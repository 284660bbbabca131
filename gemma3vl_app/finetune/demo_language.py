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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import Gemma3ForConditionalGeneration

from gemma3vl_app.finetune import about_itself, scene_comparisons, scene_questions
from gemma3vl_app.finetune.demo_tower import NOTHING, TowerWithHeads, labels_of, save_checkpoint
from gemma3vl_app.finetune.scene_drawing import draw
from gemma3vl_app.finetune.scene_wording import in_other_words
from gemma3vl_app.finetune.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene, random_scene
from gemma3vl_app.messages import Conversation, Part, Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.tasks.prompts import PICTURE_LABEL

logger = logging.getLogger(__name__)

LORA = LoraConfig(
    r=16,
    lora_alpha=32,
    lora_dropout=0.0,
    target_modules=r".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
)
_PART = 500  # pictures that one process draws at a time
_DRAWN_IDS = 4096  # tokens of no answer, per step
_LINE_BREAK_ID = 107
_TURNS = 7  # about one picture
IGNORED = -100


Said = tuple[list[int], scene_questions.Turn]  # pictures shown with a question, by their numbers


@dataclass(frozen=True)
class Pool:
    """Scenes and what the tower sees of each: float32 (N, T, width of the tower)."""

    scenes: tuple[Scene, ...]
    cells: torch.Tensor


@dataclass(frozen=True)
class Talk:
    """A conversation as tokens: ids (L,), labels (L,), pictures as (first token, number in pool).

    `kinds` holds for each answer its kind and where it lies.
    """

    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    pictures: tuple[tuple[int, int], ...]
    kinds: tuple[tuple[str, int, int], ...]


# --- what is learned from -------------------------------------------------------------------------


def make_pool(tower: TowerWithHeads, count: int, seed: int, *, held_out: bool = False) -> Pool:
    """Draw `count` scenes, and look at them with the tower."""
    side = tower.patch * tower.patches
    parts = [
        (f"{seed}/{at}", min(_PART, count - at), side, held_out) for at in range(0, count, _PART)
    ]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        done = list(pool.map(_drawn_part, parts))
    scenes = tuple(scene for part in done for scene in part[0])
    seen = []
    with torch.no_grad():
        for _, pixels in done:
            for first in range(0, len(pixels), 50):
                seen.append(tower.look(pixels[first : first + 50]))
    return Pool(scenes, torch.cat(seen))


def _drawn_part(
    part: tuple[str, int, int, bool],
) -> tuple[list[Scene], npt.NDArray[np.uint8]]:
    seed, count, side, held_out = part
    rng = random.Random(seed)
    scenes, pixels = [], np.empty((count, side, side, 3), dtype=np.uint8)
    for number in range(count):
        scenes.append(random_scene(rng, held_out=held_out))
        picture = draw(scenes[-1], rng)
        pixels[number] = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
    return scenes, pixels


class Talks:
    """Makes conversations about the scenes of a pool."""

    def __init__(self, pool: Pool, tokenizer: TextTokenizer, format: PromptFormat) -> None:
        self.pool = pool
        self._tokenizer = tokenizer
        self._format = format
        self._stand_in = Picture.open(Image.new("RGB", (8, 8)))  # its pixels are never looked at
        self._model_id = int(tokenizer.encode("model")[0])

    def talk(self, rng: random.Random) -> Talk:
        """Return a conversation: mostly about one picture, also about several or none."""
        draw = rng.random()
        if draw < 0.05:
            return self._about_itself(rng)
        if draw < 0.70:
            return self._one_picture(rng)
        return self._several_pictures(rng)

    def known_ids(self) -> torch.Tensor:
        """Return the tokens that occur in conversations, answers and questions alike; sorted."""
        rng = random.Random(0)
        seen = {int(id) for _ in range(400) for id in self.talk(rng).ids}
        seen.discard(self._format.soft)
        about = [text for turn in about_itself.turns() for text in turn]
        seen |= {int(id) for text in about for id in self._tokenizer.encode(text)}
        return torch.tensor(sorted(seen))

    def _one_picture(self, rng: random.Random) -> Talk:
        number = rng.randrange(len(self.pool.scenes))
        turns = scene_questions.turns(self.pool.scenes[number], rng, _TURNS)
        # What was described before can be copied: most often it comes last.
        turns.sort(key=lambda turn: turn.kind.startswith("describe") and rng.random() < 0.7)
        if rng.random() < 0.15:
            question, answer = rng.choice(about_itself.at_any_time())
            turn = scene_questions.Turn("itself", question, answer)
            turns.insert(rng.randint(1, len(turns)), turn)
        said: list[Said] = [([number] if at == 0 else [], turn) for at, turn in enumerate(turns)]
        return self._as_tokens(said, rng)

    def _several_pictures(self, rng: random.Random) -> Talk:
        numbers = [rng.randrange(len(self.pool.scenes)) for _ in range(rng.choice((2, 2, 2, 3)))]
        scenes = [self.pool.scenes[number] for number in numbers]
        said: list[Said] = []
        draw = rng.random()
        if draw < 0.45:  # all at once
            shown: list[int] = numbers
            wanted = 4
        elif draw < 0.6:  # all at once, to be compared in words
            said.append((numbers, scene_comparisons.comparison(scenes)))
            shown, wanted = [], 2
        else:  # one after the other, with a question about each
            for number, scene in zip(numbers, scenes, strict=True):
                said.append(([number], scene_questions.turns(scene, rng, 1)[0]))
            shown, wanted = [], 3
        while wanted:
            turn = scene_comparisons.about_several(scenes, rng)
            if turn is not None and turn.question not in {each.question for _, each in said}:
                said.append((shown, turn))
                shown, wanted = [], wanted - 1
        return self._as_tokens(said, rng)

    def _about_itself(self, rng: random.Random) -> Talk:
        said: list[Said] = [
            ([], scene_questions.Turn("itself", question, answer))
            for question, answer in rng.sample(about_itself.turns(), 5)
        ]
        return self._as_tokens(said, rng)

    def _as_tokens(self, said: Sequence[Said], rng: random.Random) -> Talk:
        conversation = Conversation()
        for shown, turn in said:
            parts: list[Part] = []
            for number in range(1, len(shown) + 1):
                if turn.kind == scene_comparisons.COMPARISON:  # as `tasks.ask` puts it
                    parts.append(Text(PICTURE_LABEL.format(number=number)))
                parts.append(self._stand_in)
            question = in_other_words(turn.question, rng) if rng.random() < 0.5 else turn.question
            conversation = conversation.user(*parts, question).assistant(turn.answer)
        prompt = prepare(conversation, self._tokenizer, self._format)
        ids = np.append(prompt.ids, self._format.end_of_turn)
        spans = self._answer_spans(ids)
        labels = np.full(len(ids), IGNORED, dtype=np.int64)
        for first, last in spans:
            labels[first:last] = ids[first:last]
        numbers = [number for shown, _ in said for number in shown]
        starts = [start for start, _ in prompt.image_spans]
        kinds = [(turn.kind, *span) for (_, turn), span in zip(said, spans, strict=True)]
        return Talk(ids, labels, tuple(zip(starts, numbers, strict=True)), tuple(kinds))

    def _answer_spans(self, ids: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return where answers lie, each with the token that ends it."""
        start, end = self._format.start_of_turn, self._format.end_of_turn
        spans = []
        for at in np.flatnonzero(ids == start):
            if ids[at + 1] == self._model_id:
                first = int(at) + 3  # after `<start_of_turn>model\n`
                spans.append((first, first + int(np.flatnonzero(ids[first:] == end)[0]) + 1))
        return spans


# --- the model ------------------------------------------------------------------------------------


class Reader:
    """The whole demo in training: frozen embeddings and tower, learning projector and LoRA."""

    def __init__(self, model: Gemma3ForConditionalGeneration, soft_tokens: int) -> None:
        model.requires_grad_(False)
        self.peft = get_peft_model(model, LORA)
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
            vectors = vectors.masked_scatter((blocks >= 0)[..., None], soft)
        places = torch.arange(longest)
        visible = places[:, None] >= places  # (L, L)
        same = (blocks[:, :, None] == blocks[:, None, :]) & (blocks >= 0)[:, :, None]
        mask = (visible | same)[:, None]  # (B, 1, L, L); padding lies behind and sees only itself
        masks = {"full_attention": mask, "sliding_attention": mask}
        output = self.language(inputs_embeds=vectors, attention_mask=masks, use_cache=False)
        wanted = labels[:, 1:].reshape(-1)
        kept = wanted != IGNORED
        return output.last_hidden_state[:, :-1].reshape(-1, vectors.shape[-1])[kept], wanted[kept]

    def logits(self, hidden: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Return logits over a part of the vocabulary; hidden (n, D), part (V,), result (n, V)."""
        logits: torch.Tensor = hidden @ self.embedding.weight[part].T
        return logits

    def start_projector(self, pool: Pool, tokenizer: TextTokenizer) -> None:
        """Let each soft token begin as the sum of the words for what is in its cell.

        A least-squares fit; the language model then reads pictures nearly from the start.
        """
        side = round(self._soft_tokens**0.5)
        labels = np.stack([labels_of(scene, side) for scene in pool.scenes])  # (N, C, heads)
        words = [_word_vectors(self.embedding, tokenizer, names) for names in _WORDS]
        target = self.embedding(torch.tensor(_LINE_BREAK_ID)).expand(*labels.shape[:2], -1).clone()
        there = torch.from_numpy(labels[..., 0] != NOTHING)
        found = labels[labels[..., 0] != NOTHING]
        target[there] = sum(
            weight * table[torch.from_numpy(found[:, head]).long()]
            for (head, weight), table in zip(_WEIGHTS, words, strict=True)
        )
        cells, target = pool.cells.flatten(0, 1), target.flatten(0, 1)
        share = torch.where(there.flatten(), 4.0, 1.0)[:, None].sqrt()  # few cells hold a centre
        fit = torch.linalg.lstsq(cells * share, target * share).solution
        with torch.no_grad():
            self.projector.mm_input_projection_weight.copy_(fit)


_WORDS = (SHAPES, COLOURS, SIZES, tuple(place.split()[-1] for place in PLACES))
_WEIGHTS = ((0, 1.0), (1, 1.0), (2, 0.5), (4, 0.5))  # number of the head, and its word's share


def _word_vectors(
    embedding: nn.Module, tokenizer: TextTokenizer, names: Sequence[str]
) -> torch.Tensor:
    """Return the scaled embedding of each word as it stands inside a sentence."""
    return torch.stack(
        [embedding(torch.tensor(tokenizer.encode(f" {name}"))).mean(0) for name in names]
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
