"""Questions about scenes, with their answers: the language of the demo model.

Answers are short and say only what is certain. A question about something is asked only where one
thing is meant by it; where nothing is, the answer is that it cannot be told.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gemma3vl_app.finetune.scenes import COLOURS, SHAPES, Scene, Thing

CANNOT_TELL = "I can't tell from this picture."
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_ORDINALS = ("first", "second", "third")
_APART = 0.18  # so far apart, one thing is clearly left of another, or above it


@dataclass(frozen=True)
class Turn:
    """A question, its answer, and what kind of question it is."""

    kind: str
    question: str
    answer: str


# --- about one scene ------------------------------------------------------------------------------


def describe(scene: Scene, rng: random.Random) -> Turn:
    """Ask what there is."""
    question = rng.choice(
        (
            "Describe this picture in one sentence.",
            "Describe this picture in one sentence.",
            "Describe this picture.",
            "Describe the picture.",
            "What is in this picture?",
            "What do you see?",
            "What does this picture show?",
            "What is this?",
        )
    )
    return Turn("describe", question, description(scene))


def description(scene: Scene) -> str:
    """Return all things of a scene in reading order, with their places."""
    parts = [f"{full_name(thing)} {thing.place}" for thing in scene.things]
    return f"{_listed(parts)}."[0].upper() + f"{_listed(parts)}."[1:]


def colour(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask for the colour of what only one thing can be."""
    thing = _only(scene, rng, lambda each: each.shape)
    if thing is None:
        return None
    question = rng.choice(
        (
            f"What color is the {thing.shape}?",
            f"What is the color of the {thing.shape}?",
            f"Which color does the {thing.shape} have?",
        )
    )
    return Turn("colour", question, f"{thing.colour.capitalize()}.")


def shape(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask which shape it is that has a colour or a place."""
    thing = _only(scene, rng, lambda each: each.colour)
    if thing is not None and rng.random() < 0.7:
        question = rng.choice(
            (
                f"What shape is {thing.colour}?",
                f"Which shape is {thing.colour}?",
                f"What is the {thing.colour} shape?",
            )
        )
    else:
        thing = _only(scene, rng, lambda each: each.place)
        if thing is None:
            return None
        question = f"Which shape is {thing.place}?"
    return Turn("shape", question, f"{_with_article(thing.shape)}.")


def count(scene: Scene, rng: random.Random) -> Turn:
    """Ask for how many there are: of all, of a colour, of a shape."""
    draw = rng.random()
    if draw < 0.5:
        number, what = len(scene.things), "shapes"
    elif draw < 0.75:
        name = rng.choice(scene.things).shape if rng.random() < 0.8 else rng.choice(SHAPES)
        number, what = sum(each.shape == name for each in scene.things), plural(name)
    else:
        name = rng.choice(scene.things).colour if rng.random() < 0.8 else rng.choice(COLOURS)
        number, what = sum(each.colour == name for each in scene.things), f"{name} shapes"
    question = rng.choice((f"How many {what} are there?", f"How many {what} do you see?"))
    return Turn("count", question, f"{_NUMBERS[number].capitalize()}.")


def where(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask for a thing's place."""
    thing = _only(scene, rng, lambda each: each.pair)
    if thing is None:
        return None
    question = f"Where is the {_called(scene, thing, rng)}?"
    return Turn("where", question, f"{thing.place.capitalize()}.")


def relation(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask how two things lie to each other."""
    unique = [each for each in scene.things if _count(scene, each.pair) == 1]
    if len(unique) < 2:
        return None
    one, other = rng.sample(unique, 2)
    across, down = other.x - one.x, other.y - one.y
    beside = rng.random() < 0.5
    if abs(across if beside else down) < _APART:
        return None
    first, second = _called(scene, one, rng), _called(scene, other, rng)
    low, high = ("left of", "right of") if beside else ("above", "below")
    is_low = (across if beside else down) > 0
    if rng.random() < 0.5:
        question = f"Is the {first} {low} or {high} the {second}?"
        return Turn(
            "relation", question, f"{(low if is_low else high).capitalize()}.".replace(" of.", ".")
        )
    asked_low = rng.random() < 0.5
    question = f"Is the {first} {low if asked_low else high} the {second}?"
    return Turn("relation", question, "Yes." if asked_low == is_low else "No.")


def is_there(scene: Scene, rng: random.Random) -> Turn:
    """Ask whether something is there: half of the answers are no, most of those nearly yes."""
    there = rng.random() < 0.5
    while True:
        near = rng.choice(scene.things)
        if there or rng.random() < 0.3:
            colour, shape = near.pair if there else (rng.choice(COLOURS), rng.choice(SHAPES))
        elif rng.random() < 0.5:
            colour, shape = rng.choice(COLOURS), near.shape
        else:
            colour, shape = near.colour, rng.choice(SHAPES)
        what = f"{colour} {shape}" if rng.random() < 0.7 else shape
        if there == any(what in (" ".join(each.pair), each.shape) for each in scene.things):
            break
    question = rng.choice((f"Is there {_article(what)}?", f"Do you see {_article(what)}?"))
    return Turn("is_there", question, "Yes." if there else "No.")


def how_large(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask for a thing's size."""
    thing = _only(scene, rng, lambda each: each.pair)
    if thing is None:
        return None
    called = _called(scene, thing, rng)
    return Turn("size", f"How large is the {called}?", f"{thing.size.capitalize()}.")


def filled(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask whether a thing is filled or only an outline."""
    thing = _only(scene, rng, lambda each: each.pair)
    if thing is None:
        return None
    question = f"Is the {_called(scene, thing, rng)} filled or an outline?"
    return Turn("filled", question, "An outline." if thing.outlined else "Filled.")


def not_there(scene: Scene, rng: random.Random) -> Turn:
    """Ask about something that the picture does not show."""
    absent = [name for name in SHAPES if all(name != each.shape for each in scene.things)]
    name = rng.choice(absent)
    question = rng.choice(
        (
            f"What color is the {name}?",
            f"Where is the {name}?",
            f"What is the name of the {rng.choice(('man', 'dog', 'artist', 'street'))}?",
            f"When was this {rng.choice(('taken', 'drawn'))}?",
        )
    )
    return Turn("not_there", question, CANNOT_TELL)


ABOUT_ONE: dict[str, Callable[[Scene, random.Random], Turn | None]] = {
    "describe": describe,
    "colour": colour,
    "shape": shape,
    "count": count,
    "where": where,
    "relation": relation,
    "is_there": is_there,
    "size": how_large,
    "filled": filled,
    "not_there": not_there,
}
_SHARES = {"describe": 5, "colour": 3, "shape": 3, "count": 4, "where": 4, "relation": 5}
_SHARES |= {"is_there": 4, "size": 1, "filled": 1, "not_there": 2}


def turns(scene: Scene, rng: random.Random, number: int) -> list[Turn]:
    """Return about `number` turns on one scene, some of them follow-ups to the one before."""
    asked: list[Turn] = []
    kinds = list(_SHARES)
    while len(asked) < number:
        kind = rng.choices(kinds, weights=[_SHARES[each] for each in kinds])[0]
        turn = ABOUT_ONE[kind](scene, rng)
        if turn is None or turn.question in {each.question for each in asked}:
            continue
        asked.append(turn)
        if kind in ("shape", "where") and rng.random() < 0.4:
            asked += follow_up(scene, turn, rng)
    return asked


def follow_up(scene: Scene, turn: Turn, rng: random.Random) -> list[Turn]:
    """Ask on about the one thing that a question was about, calling it "it"."""
    meant = [each for each in scene.things if _means(turn, each)]
    if len(meant) != 1:
        return []
    thing = meant[0]
    if turn.kind == "shape" and thing.place not in turn.question:
        return [Turn("follow_up", "Where is it?", f"{thing.place.capitalize()}.")]
    if turn.kind == "shape" and thing.colour not in turn.question:
        return [Turn("follow_up", "What color is it?", f"{thing.colour.capitalize()}.")]
    return [Turn("follow_up", "How large is it?", f"{thing.size.capitalize()}.")]


def _means(turn: Turn, thing: Thing) -> bool:
    if turn.kind == "shape":
        words = turn.question.rstrip("?").split()
        named = thing.colour in words or turn.question == f"Which shape is {thing.place}?"
        return named and thing.shape in turn.answer
    return turn.question.endswith(f"{thing.shape}?") and turn.answer.lower().startswith(thing.place)


# --- about several --------------------------------------------------------------------------------


def about_several(scenes: Sequence[Scene], rng: random.Random) -> Turn | None:
    """Ask something for which two or three pictures have to be looked at, or one picked out."""
    names = [f"the {_ORDINALS[number]} picture" for number in range(len(scenes))]
    draw = rng.random()
    if draw < 0.35:
        amounts = [len(scene.things) for scene in scenes]
        most = rng.random() < 0.6
        wanted = max(amounts) if most else min(amounts)
        if amounts.count(wanted) > 1:
            return None
        question = f"Which picture has {'the most' if most else 'the fewest'} shapes?"
        if len(scenes) == 2:
            question = f"Which picture has {'more' if most else 'fewer'} shapes?"
        return Turn("compare", question, f"The {_ORDINALS[amounts.index(wanted)]}.")
    number = rng.randrange(len(scenes))
    thing = rng.choice(scenes[number].things)
    if draw < 0.75:
        what = f"{thing.colour} {thing.shape}" if rng.random() < 0.6 else thing.shape
        has = [any(what in (" ".join(t.pair), t.shape) for t in scene.things) for scene in scenes]
        if sum(has) != 1:
            return None
        question = rng.choice(
            (f"Which picture has {_article(what)}?", f"Which picture shows {_article(what)}?")
        )
        return Turn("compare", question, f"The {_ORDINALS[number]}.")
    turn = (colour, count, where)[rng.randrange(3)](scenes[number], rng)
    if turn is None:
        return None
    return Turn("one_of_several", f"{turn.question[:-1]} in {names[number]}?", turn.answer)


# --- words ----------------------------------------------------------------------------------------


def full_name(thing: Thing) -> str:
    """Return such as "a small red circle" or "the outline of a blue star"."""
    size = "" if thing.size == "medium" else f"{thing.size} "
    return f"a {size}{thing.colour} {thing.shape}" if size else _article(" ".join(thing.pair))


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def _article(what: str) -> str:
    return f"{'an' if what[0] in 'aeio' else 'a'} {what}"


def _with_article(what: str) -> str:
    return _article(what).capitalize()


def _listed(parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _count(scene: Scene, pair: tuple[str, str]) -> int:
    return sum(each.pair == pair for each in scene.things)


def _only(scene: Scene, rng: random.Random, key: Callable[[Thing], object]) -> Thing | None:
    """Return a thing that no other is like in `key`, or None."""
    keys = [key(each) for each in scene.things]
    alone = [each for each in scene.things if keys.count(key(each)) == 1]
    return rng.choice(alone) if alone else None


def _called(scene: Scene, thing: Thing, rng: random.Random) -> str:
    """Return a name that means this thing only: by its shape where that is enough."""
    same = sum(each.shape == thing.shape for each in scene.things)
    short = same == 1 and rng.random() < 0.5
    return thing.shape if short else " ".join(thing.pair)
