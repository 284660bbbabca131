"""Questions about several scenes: which of them, how they differ, and about one among others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from gemma3vl_app.scenes.questions import Turn, colour, count, shape, where
from gemma3vl_app.scenes.scene import SHAPES, Scene
from gemma3vl_app.scenes.wording import article, listed
from gemma3vl_app.tasks.prompts import COMPARE

COMPARISON = "comparison"  # the kind of turns whose pictures are labelled with their numbers
_ORDINALS = ("first", "second", "third")


def about_several(scenes: Sequence[Scene], rng: random.Random) -> Turn | None:
    """Ask something for which two or three pictures have to be looked at, or one picked out."""
    draw = rng.random()
    if draw < 0.35:
        return _by_amount(scenes, rng)
    number = rng.randrange(len(scenes))
    if draw < 0.75:
        return _which_has(scenes, number, rng)
    if draw < 0.85:
        return _without_saying_which(scenes, rng)
    turn = (colour, count, where)[rng.randrange(3)](scenes[number], rng)
    if turn is None:
        return None
    question = f"{turn.question[:-1]} in the {_ORDINALS[number]} picture?"
    return Turn("one_of_several", question, turn.answer)


def _without_saying_which(scenes: Sequence[Scene], rng: random.Random) -> Turn | None:
    """Ask about what only one thing of all pictures can be."""
    together = replace(scenes[0], things=tuple(t for scene in scenes for t in scene.things))
    turn = (colour, shape, where)[rng.randrange(3)](together, rng)
    return turn and Turn("one_of_several", turn.question, turn.answer)


def comparison(scenes: Sequence[Scene]) -> Turn:
    """Ask as `gv.compare` does: what each shows, what they have in common, which has the most."""
    told = [
        f"Picture {number} shows {listed([article(' '.join(t.pair)) for t in scene.things])}."
        for number, scene in enumerate(scenes, start=1)
    ]
    shapes = [{thing.shape for thing in scene.things} for scene in scenes]
    common = [name for name in SHAPES if all(name in each for each in shapes)]
    if common:
        told.append(f"Each shows {listed([article(name) for name in common])}.")
    else:
        told.append("They have no shape in common.")
    amounts = [len(scene.things) for scene in scenes]
    if amounts.count(max(amounts)) == 1:
        told.append(f"Picture {amounts.index(max(amounts)) + 1} has the most shapes.")
    return Turn(COMPARISON, COMPARE.text, " ".join(told))


def _by_amount(scenes: Sequence[Scene], rng: random.Random) -> Turn | None:
    amounts = [len(scene.things) for scene in scenes]
    most = rng.random() < 0.6
    wanted = max(amounts) if most else min(amounts)
    if amounts.count(wanted) > 1:
        return None
    question = f"Which picture has {'the most' if most else 'the fewest'} shapes?"
    if len(scenes) == 2:
        question = f"Which picture has {'more' if most else 'fewer'} shapes?"
    return Turn("compare", question, f"The {_ORDINALS[amounts.index(wanted)]}.")


def _which_has(scenes: Sequence[Scene], number: int, rng: random.Random) -> Turn | None:
    thing = rng.choice(scenes[number].things)
    what = " ".join(thing.pair) if rng.random() < 0.6 else thing.shape
    has = [any(what in (" ".join(t.pair), t.shape) for t in scene.things) for scene in scenes]
    if sum(has) != 1:
        return None
    question = rng.choice(
        (f"Which picture has {article(what)}?", f"Which picture shows {article(what)}?")
    )
    return Turn("compare", question, f"The {_ORDINALS[number]}.")
