"""Conversations that the demo's language model learns from, about pictures that its tower has seen.

The tower is frozen, and its view of each picture computed once. The processes that draw pictures
make conversations of several turns about them, as tokens; both together are a `Pool`. Shapes: N
pictures, T soft tokens of a picture.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gemma3vl_app.finetune import (
    about_itself,
    charts,
    reading_questions,
)
from gemma3vl_app.finetune.charts import Chart
from gemma3vl_app.finetune.demo_tower import TowerWithHeads
from gemma3vl_app.finetune.tower_pictures import (
    CELL_CHARACTERS,
    HEADS,
    NOTHING,
    SCENES_ONLY,
    Kinds,
    Labels,
    characters_of,
    drawn_kind,
    labels_of,
)
from gemma3vl_app.messages import Conversation, Part, Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.scenes import comparisons, print_drawing, questions
from gemma3vl_app.scenes.drawing import draw
from gemma3vl_app.scenes.print_drawing import Letter
from gemma3vl_app.scenes.printed import Print, random_print
from gemma3vl_app.scenes.scene import Scene, random_scene
from gemma3vl_app.scenes.wording import in_other_words
from gemma3vl_app.tasks.prompts import PICTURE_LABEL

_PART = 500  # pictures that one process draws at a time
IGNORED = -100

Shown = Scene | Print | Chart
Said = tuple[list[int], questions.Turn]  # pictures shown with a question, by their numbers


@dataclass(frozen=True)
class Talk:
    """A conversation as tokens: ids (L,), labels (L,), pictures as (first token, number in pool).

    `kinds` holds for each answer its kind and where it lies.
    """

    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    pictures: tuple[tuple[int, int], ...]
    kinds: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Pool:
    """What the tower sees of pictures, and conversations about them.

    `cells` is float32 (N, T, width of the tower); `labels` and `characters` say of each cell what
    the tower was taught to, as in `tower_pictures.Drawn`.
    """

    cells: torch.Tensor
    labels: Labels
    characters: Labels
    talks: tuple[Talk, ...]

    def known_ids(self) -> torch.Tensor:
        """Return the tokens that occur in answers, sorted."""
        seen = [talk.labels[talk.labels != IGNORED] for talk in self.talks]
        return torch.from_numpy(np.unique(np.concatenate(seen)))


@dataclass(frozen=True)
class Speech:
    """How conversations become tokens, in whatever process."""

    tokenizer_file: Path
    format: PromptFormat


# --- pictures, and conversations about them, by several processes ---------------------------------


@dataclass(frozen=True)
class Topics:
    """What conversations are about, as shares: the demo itself, one picture, one after the other.

    The rest is about several scenes. So many `turns` are about one scene, `shares` of them of each
    kind; `text_turns` about one print or chart, with `print_shares`.
    """

    itself: float = 0.08
    one_picture: float = 0.57
    one_after_the_other: float = 0.07
    turns: int = 7
    text_turns: int = 7
    shares: Mapping[str, float] = field(default_factory=lambda: dict(questions.SHARES))
    print_shares: Mapping[str, float] = field(
        default_factory=lambda: dict(reading_questions.PRINT_SHARES)
    )


@dataclass(frozen=True)
class PoolStage:
    """Which pictures a pool is of, and how many conversations are about them, and what about."""

    pictures: int
    talks: int
    seed: int
    kinds: Kinds = SCENES_ONLY
    held_out: bool = False
    topics: Topics = field(default_factory=Topics)


class PoolDrawing:
    """A pool's pictures and conversations, as `executor` makes them; the same ones every time.

    Pictures are for `tower`, which is asked for its view of them in the end only.
    """

    def __init__(
        self,
        stage: PoolStage,
        tower: TowerWithHeads,
        speech: Speech,
        work: Path,
        executor: Executor,
    ) -> None:
        work.mkdir(parents=True, exist_ok=True)
        sides = tower.patch * tower.patches, tower.patches // tower.pooled
        self._tower = tower
        self._parts: list[Future[tuple[Path, list[Talk]]]] = [
            executor.submit(_make_part, stage, first, *sides, speech, work)
            for first in range(0, stage.pictures, _PART)
        ]

    def pool(self) -> Pool:
        """Return all of it as the tower sees it now; waits for what is not made yet."""
        seen, labels, characters, talks = [], [], [], []
        for part in self._parts:
            file, made = part.result()
            drawn = load_file(file)
            file.unlink()
            seen.append(self._tower.look_at_all(drawn["pixels"]))
            labels.append(drawn["labels"].numpy())
            characters.append(drawn["characters"].numpy())
            talks += made
        return Pool(
            torch.cat(seen), np.concatenate(labels), np.concatenate(characters), tuple(talks)
        )


def _make_part(
    stage: PoolStage, first: int, side: int, cells_a_side: int, speech: Speech, work: Path
) -> tuple[Path, list[Talk]]:
    """Draw the pictures from number `first` on, and make the share of conversations about them."""
    count = min(_PART, stage.pictures - first)
    rng = random.Random(f"{stage.seed}/{first}")
    found, drawn = _draw_part(stage, count, rng, side, cells_a_side)
    file = work / f"pool-{stage.seed}-{first}.safetensors"
    save_file(drawn, file)
    talks = Talks(found, _tokenizer(speech.tokenizer_file), speech.format, stage.topics)
    wanted = stage.talks * (first + count) // stage.pictures - stage.talks * first // stage.pictures
    return file, [_moved(talks.talk(rng), first) for _ in range(wanted)]


def _moved(talk: Talk, by: int) -> Talk:
    return replace(talk, pictures=tuple((at, number + by) for at, number in talk.pictures))


@lru_cache(maxsize=1)
def _tokenizer(file: Path) -> TextTokenizer:
    return TextTokenizer.from_file(file)


def _draw_part(
    stage: PoolStage, count: int, rng: random.Random, side: int, cells_a_side: int
) -> tuple[list[Shown], dict[str, torch.Tensor]]:
    found: list[Shown] = []
    pixels = np.empty((count, side, side, 3), dtype=np.uint8)
    labels = np.full((count, cells_a_side**2, len(HEADS)), NOTHING, dtype=np.int8)
    characters = np.full((count, cells_a_side**2, CELL_CHARACTERS), NOTHING, dtype=np.int8)
    for number in range(count):
        kind = drawn_kind(stage.kinds, rng)
        letters: tuple[Letter, ...] = ()
        shown: Shown
        if kind == "scene":
            shown = random_scene(rng, held_out=stage.held_out)
            picture = draw(shown, rng)
            labels[number] = labels_of(shown, cells_a_side)
        elif kind == "print":
            shown = random_print(rng, held_out=stage.held_out)
            picture, letters = print_drawing.draw_with_letters(shown, rng)
        else:
            shown = charts.random_chart(rng, held_out=stage.held_out)
            picture, letters = charts.draw_with_letters(shown, rng)
        characters[number] = characters_of(letters, cells_a_side, CELL_CHARACTERS)
        found.append(shown)
        pixels[number] = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
    arrays = {"pixels": pixels, "labels": labels, "characters": characters}
    return found, {name: torch.from_numpy(array) for name, array in arrays.items()}


# --- conversations --------------------------------------------------------------------------------


class Talks:
    """Makes conversations about pictures, which are numbered in the order in which they come."""

    def __init__(
        self,
        shown: Sequence[Shown],
        tokenizer: TextTokenizer,
        format: PromptFormat,
        topics: Topics | None = None,
    ) -> None:
        self.shown = tuple(shown)
        self._topics = topics or Topics()
        self._scenes = [n for n, each in enumerate(shown) if isinstance(each, Scene)]
        self._tokenizer = tokenizer
        self._format = format
        self._stand_in = Picture.open(Image.new("RGB", (8, 8)))  # its pixels are never looked at
        self._model_id = int(tokenizer.encode("model")[0])

    def talk(self, rng: random.Random) -> Talk:
        """Return a conversation: mostly about one picture, also about several or none."""
        topics, draw = self._topics, rng.random()
        if draw < topics.itself:
            return self._about_itself(rng)
        if draw < topics.itself + topics.one_picture or len(self._scenes) < 2:
            return self._one_picture(rng)
        if draw < topics.itself + topics.one_picture + topics.one_after_the_other:
            return self._one_after_the_other(rng)
        return self._several_scenes(rng)

    def _one_picture(self, rng: random.Random) -> Talk:
        number = rng.randrange(len(self.shown))
        about_scene = isinstance(self.shown[number], Scene)
        count = self._topics.turns if about_scene else self._topics.text_turns
        turns = self._turns(number, rng, count)
        # What was described before can be copied: most often it comes last.
        turns.sort(key=lambda turn: turn.kind.startswith("describe") and rng.random() < 0.7)
        if rng.random() < 0.15:
            question, answer = rng.choice(about_itself.at_any_time())
            turn = questions.Turn("itself", question, answer)
            turns.insert(rng.randint(1, len(turns)), turn)
        said: list[Said] = [([number] if at == 0 else [], turn) for at, turn in enumerate(turns)]
        return self._as_tokens(said, rng)

    def _turns(self, number: int, rng: random.Random, count: int) -> list[questions.Turn]:
        shown = self.shown[number]
        if isinstance(shown, Scene):
            return questions.turns(shown, rng, count, self._topics.shares)
        return reading_questions.turns(shown, rng, count, self._topics.print_shares)

    def _one_after_the_other(self, rng: random.Random) -> Talk:
        """Talk about pictures of any kind, each while it is the last one."""
        said: list[Said] = []
        for number in (rng.randrange(len(self.shown)) for _ in range(rng.choice((2, 3)))):
            turns = self._turns(number, rng, 2)
            said += [([number] if at == 0 else [], turn) for at, turn in enumerate(turns)]
        return self._as_tokens(said, rng)

    def _several_scenes(self, rng: random.Random) -> Talk:
        numbers = [rng.choice(self._scenes) for _ in range(rng.choice((2, 2, 2, 3)))]
        scenes = [scene for n in numbers if isinstance(scene := self.shown[n], Scene)]
        said: list[Said] = []
        draw = rng.random()
        if draw < 0.45:  # all at once
            shown: list[int] = numbers
            wanted = 5
        elif draw < 0.6:  # all at once, to be compared in words
            said.append((numbers, comparisons.comparison(scenes)))
            shown, wanted = [], 2
        else:  # one after the other, with a question about each
            for number, scene in zip(numbers, scenes, strict=True):
                said.append(([number], questions.turns(scene, rng, 1)[0]))
            shown, wanted = [], 3
        while wanted:
            turn = comparisons.about_several(scenes, rng)
            if turn is not None and turn.question not in {each.question for _, each in said}:
                said.append((shown, turn))
                shown, wanted = [], wanted - 1
        return self._as_tokens(said, rng)

    def _about_itself(self, rng: random.Random) -> Talk:
        said: list[Said] = [
            ([], questions.Turn("itself", question, answer))
            for question, answer in rng.sample(about_itself.turns(), 5)
        ]
        return self._as_tokens(said, rng)

    def _as_tokens(self, said: Sequence[Said], rng: random.Random) -> Talk:
        conversation = Conversation()
        for shown, turn in said:
            parts: list[Part] = []
            for number in range(1, len(shown) + 1):
                if turn.kind == comparisons.COMPARISON:  # as `tasks.ask` puts it
                    parts.append(Text(PICTURE_LABEL.format(number=number)))
                parts.append(self._stand_in)
            question = in_other_words(turn.question, rng) if rng.random() < 0.5 else turn.question
            conversation = conversation.user(*parts, question).assistant(turn.answer)
        letters = {
            turn.answer: spelled(turn.answer, turn.printed, self._tokenizer)
            for _, turn in said
            if turn.printed
        }
        prompt = prepare(
            conversation, self._tokenizer, self._format, recall=lambda _, text: letters.get(text)
        )
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


def spelled(answer: str, printed: Sequence[str], tokenizer: TextTokenizer) -> list[int]:
    """Return an answer's tokens, of which each is one letter where it says what is `printed`.

    As words are usually cut into tokens, a small model would have to know by heart how each of them
    is spelled; so it has only to say one after the other what letters it sees.
    """
    words = "|".join(re.escape(word) for word in sorted(printed, key=len, reverse=True))
    parts = re.split(rf"(?<!\w)({words})(?!\w)", answer)
    ids: list[int] = []
    for number, part in enumerate(parts):
        pieces = list(part) if number % 2 else [part]
        ids += [id for piece in pieces if piece for id in tokenizer.encode(piece)]
    return ids
