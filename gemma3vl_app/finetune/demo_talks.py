"""Conversations that the demo's language model learns from, about pictures that its tower has seen.

The tower is frozen, and its view of each picture computed once: a `Pool`. `Talks` makes
conversations of several turns about it, as tokens. Shapes: N pictures, T soft tokens of a picture.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from gemma3vl_app.finetune import (
    about_itself,
    charts,
    print_drawing,
    reading_questions,
    scene_comparisons,
    scene_questions,
)
from gemma3vl_app.finetune.charts import Chart
from gemma3vl_app.finetune.demo_tower import TowerWithHeads
from gemma3vl_app.finetune.print_drawing import Letter
from gemma3vl_app.finetune.printed import Print, random_print
from gemma3vl_app.finetune.scene_drawing import draw
from gemma3vl_app.finetune.scene_wording import in_other_words
from gemma3vl_app.finetune.scenes import Scene, random_scene
from gemma3vl_app.finetune.tower_pictures import (
    CELL_CHARACTERS,
    HEADS,
    NOTHING,
    SCENES_ONLY,
    Kinds,
    Labels,
    Pixels,
    characters_of,
    drawn_kind,
    labels_of,
)
from gemma3vl_app.messages import Conversation, Part, Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.tasks.prompts import PICTURE_LABEL

_PART = 500  # pictures that one process draws at a time
_TURNS = 7  # about one picture
IGNORED = -100

Shown = Scene | Print | Chart
Said = tuple[list[int], scene_questions.Turn]  # pictures shown with a question, by their numbers


@dataclass(frozen=True)
class Pool:
    """What pictures show, and what the tower sees of each.

    `cells` is float32 (N, T, width of the tower); `labels` and `characters` say of each cell what
    the tower was taught to, as in `tower_pictures.Drawn`.
    """

    shown: tuple[Shown, ...]
    cells: torch.Tensor
    labels: Labels
    characters: Labels

    @cached_property
    def scenes(self) -> tuple[int, ...]:
        """The numbers of those that show scenes."""
        return tuple(n for n, each in enumerate(self.shown) if isinstance(each, Scene))


@dataclass(frozen=True)
class Talk:
    """A conversation as tokens: ids (L,), labels (L,), pictures as (first token, number in pool).

    `kinds` holds for each answer its kind and where it lies.
    """

    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    pictures: tuple[tuple[int, int], ...]
    kinds: tuple[tuple[str, int, int], ...]


# --- pictures -------------------------------------------------------------------------------------


def make_pool(
    tower: TowerWithHeads,
    count: int,
    seed: int,
    *,
    held_out: bool = False,
    kinds: Kinds = SCENES_ONLY,
) -> Pool:
    """Draw `count` pictures, and look at them with the tower."""
    side, cells_a_side = tower.patch * tower.patches, tower.patches // tower.pooled
    parts = [
        (f"{seed}/{at}", min(_PART, count - at), side, cells_a_side, held_out, kinds)
        for at in range(0, count, _PART)
    ]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        done = list(pool.map(_drawn_part, parts))
    seen = []
    with torch.no_grad():
        for _, pixels, _, _ in done:
            for first in range(0, len(pixels), 50):
                seen.append(tower.look(pixels[first : first + 50]))
    return Pool(
        tuple(shown for part in done for shown in part[0]),
        torch.cat(seen),
        np.concatenate([part[2] for part in done]),
        np.concatenate([part[3] for part in done]),
    )


def _drawn_part(
    part: tuple[str, int, int, int, bool, Kinds],
) -> tuple[list[Shown], Pixels, Labels, Labels]:
    seed, count, side, cells_a_side, held_out, kinds = part
    rng = random.Random(seed)
    found: list[Shown] = []
    pixels = np.empty((count, side, side, 3), dtype=np.uint8)
    labels = np.full((count, cells_a_side**2, len(HEADS)), NOTHING, dtype=np.int8)
    characters = np.full((count, cells_a_side**2, CELL_CHARACTERS), NOTHING, dtype=np.int8)
    for number in range(count):
        kind = drawn_kind(kinds, rng)
        letters: tuple[Letter, ...] = ()
        shown: Shown
        if kind == "scene":
            shown = random_scene(rng, held_out=held_out)
            picture = draw(shown, rng)
            labels[number] = labels_of(shown, cells_a_side)
        elif kind == "print":
            shown = random_print(rng, held_out=held_out)
            picture, letters = print_drawing.draw_with_letters(shown, rng)
        else:
            shown = charts.random_chart(rng, held_out=held_out)
            picture, letters = charts.draw_with_letters(shown, rng)
        characters[number] = characters_of(letters, cells_a_side, CELL_CHARACTERS)
        found.append(shown)
        pixels[number] = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
    return found, pixels, labels, characters


# --- conversations --------------------------------------------------------------------------------


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
        if draw < 0.65:
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
        number = rng.randrange(len(self.pool.shown))
        shown = self.pool.shown[number]
        if isinstance(shown, Scene):
            turns = scene_questions.turns(shown, rng, _TURNS)
        else:
            turns = reading_questions.turns(shown, rng, _TURNS)
        # What was described before can be copied: most often it comes last.
        turns.sort(key=lambda turn: turn.kind.startswith("describe") and rng.random() < 0.7)
        if rng.random() < 0.15:
            question, answer = rng.choice(about_itself.at_any_time())
            turn = scene_questions.Turn("itself", question, answer)
            turns.insert(rng.randint(1, len(turns)), turn)
        said: list[Said] = [([number] if at == 0 else [], turn) for at, turn in enumerate(turns)]
        return self._as_tokens(said, rng)

    def _several_pictures(self, rng: random.Random) -> Talk:
        numbers = [rng.choice(self.pool.scenes) for _ in range(rng.choice((2, 2, 2, 3)))]
        scenes = [scene for n in numbers if isinstance(scene := self.pool.shown[n], Scene)]
        said: list[Said] = []
        draw = rng.random()
        if draw < 0.45:  # all at once
            shown: list[int] = numbers
            wanted = 5
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
