"""The examination: fresh scenes and words, a question about each, and who is right.

No picture of it was trained on: every second scene shows a pair of colour and shape that never was,
and the words are such ones in such fonts. The same items come every time.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from gemma3vl_app.pictures import Picture
from gemma3vl_app.scenes import comparisons, print_drawing, questions
from gemma3vl_app.scenes.drawing import draw
from gemma3vl_app.scenes.printed import random_print
from gemma3vl_app.scenes.scene import COLOURS, PLACES, SHAPES, Scene, random_scene
from gemma3vl_app.tasks.prompts import READ

KINDS = (
    *("colour", "shape", "count", "where", "relation"),
    *("is_there", "compare", "describe", "read"),
)
THING = re.compile(
    rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(sorted(PLACES, key=len)[::-1])})\b"
)

_SEED = "held out"


@dataclass(frozen=True)
class Item:
    """A question about scenes, their pictures, and the answer that is right."""

    scenes: tuple[Scene, ...]
    pictures: tuple[Picture, ...]
    turn: questions.Turn

    def right(self, answer: str) -> bool:
        """Whether `answer` is right, see `is_right`."""
        return is_right(self.turn.kind, answer, self.turn.answer)


def is_right(kind: str, answer: str, wanted: str) -> bool:
    """Whether `answer` says what `wanted` does.

    A description has to name each thing and no other, in any order; what is read has to be the
    very word, capitals included; other answers may differ in capitals and a full stop.
    """
    if kind == "describe":
        return _things(answer) == _things(wanted)
    if kind == "read":
        return answer.strip() == wanted
    return answer.strip().rstrip(".").lower() == wanted.rstrip(".").lower()


def _things(description: str) -> Counter[tuple[str, str]]:
    found = THING.findall(description.lower())
    return Counter((colour, shape) for colour, shape, _ in found)


def items(kind: str) -> Iterator[Item]:
    """Make items of a kind without end; the same ones every time.

    Raises:
        TrainingError: "read" needs fonts that are not installed; names the packages that bring
            them.
    """
    rng = random.Random(f"{_SEED} {kind}")
    yield from _words_to_read(rng) if kind == "read" else _about_scenes(kind, rng)


def _about_scenes(kind: str, rng: random.Random) -> Iterator[Item]:
    made = 0
    while True:
        number = rng.choice((2, 2, 3)) if kind == "compare" else 1
        scenes = tuple(random_scene(rng, held_out=made % 2 == 0) for _ in range(number))
        if kind == "compare":
            turn = comparisons.about_several(scenes, rng)
        else:
            turn = questions.ABOUT_ONE[kind](scenes[0], rng)
        if turn is None or turn.kind != kind:
            continue
        made += 1
        yield Item(scenes, tuple(Picture.open(draw(scene, rng)) for scene in scenes), turn)


def _words_to_read(rng: random.Random) -> Iterator[Item]:
    """Make pictures of one word that was never trained on, in fonts that never were."""
    while True:
        shown = random_print(rng, held_out=True)
        if len(shown.words) == 1:
            turn = questions.Turn("read", READ["plain"].text, shown.words[0])
            yield Item((), (Picture.open(print_drawing.draw_print(shown, rng)),), turn)
