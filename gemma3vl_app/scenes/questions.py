"""Questions about scenes, with their answers: the language of the demo model.

Answers are short and say only what is certain. A question about something is asked only where one
thing is meant by it; where nothing is, the answer is that it cannot be told.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from gemma3vl_app.scenes.scene import COLOURS, SHAPES, Scene, Thing
from gemma3vl_app.scenes.wording import (
    NUMBERS,
    article,
    full_name,
    listed,
    plural,
    sentence,
)
from gemma3vl_app.tasks.prompts import CAPTION, READ

CANNOT_TELL = "I can't tell from this picture."
_APART = 0.18  # so far apart, one thing is clearly left of another, or above it
_MUCH_LARGER = 1.25  # by so much, one thing is clearly the largest


@dataclass(frozen=True)
class Turn:
    """A question, its answer, and what kind of question it is.

    `printed` are words that can be read in the picture: where they are a part of the answer, it is
    to be written letter by letter.
    """

    kind: str
    question: str
    answer: str
    printed: tuple[str, ...] = ()


# --- about one scene ------------------------------------------------------------------------------


def describe(scene: Scene, rng: random.Random) -> Turn:
    """Ask what there is."""
    question = rng.choice((CAPTION["short"].text, CAPTION["short"].text, *_DESCRIBE))
    return Turn("describe", question, description(scene))


_DESCRIBE = (
    *("Describe this picture.", "Describe the picture.", "Describe it.", "What is this?"),
    *("What is in this picture?", "What is in the picture?", "What's in this picture?"),
    *("What do you see?", "What can you see?", "What does this picture show?"),
    *("What is shown here?", "Which shapes are there?", "What shapes do you see?"),
    *("List the shapes.", "Tell me what you see."),
)


def description(scene: Scene) -> str:
    """Return all things of a scene in reading order, with their places."""
    return sentence(listed([f"{full_name(thing)} {thing.place}" for thing in scene.things]))


def describe_in_detail(scene: Scene, rng: random.Random) -> Turn:
    """Ask for everything: how many, the background, and which are outlines."""
    question = rng.choice(
        (CAPTION["detailed"].text, "Describe this picture in detail.", "Tell me more about it.")
    )
    number = len(scene.things)
    start = "There is one shape" if number == 1 else f"There are {NUMBERS[number]} shapes"
    behind = "" if scene.fill == "graded" else f" on a {scene.background} background"
    things = [f"{full_name(thing, outline=True)} {thing.place}" for thing in scene.things]
    return Turn("describe_in_detail", question, f"{start}{behind}: {listed(things)}.")


def colour(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask for the colour of what only one thing can be."""
    thing = _only(scene, rng, lambda each: each.place)
    if thing is not None and rng.random() < 0.15:
        question = f"What color is the shape {thing.place}?"
        return Turn("colour", question, f"{thing.colour.capitalize()}.")
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
    return Turn("shape", question, sentence(article(thing.shape)))


def count(scene: Scene, rng: random.Random, *, of_all: float = 0.5) -> Turn:
    """Ask for how many there are: of all, of a colour, of a shape; `of_all` is a share."""
    draw = rng.random()
    if draw < of_all:
        number, what = len(scene.things), "shapes"
    elif draw < (of_all + 1) / 2:
        name = rng.choice(scene.things).shape if rng.random() < 0.8 else rng.choice(SHAPES)
        number, what = sum(each.shape == name for each in scene.things), plural(name)
    else:
        name = rng.choice(scene.things).colour if rng.random() < 0.8 else rng.choice(COLOURS)
        number, what = sum(each.colour == name for each in scene.things), f"{name} shapes"
    question = rng.choice((f"How many {what} are there?", f"How many {what} do you see?"))
    if what == "shapes" and rng.random() < 0.1:
        question = "How many?"
    return Turn("count", question, f"{NUMBERS[number].capitalize()}.")


def where(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask for a thing's place."""
    thing = _only(scene, rng, lambda each: each.pair)
    if thing is None:
        return None
    question = f"Where is the {_called(scene, thing, rng)}?"
    return Turn("where", question, f"{thing.place.capitalize()}.")


def relation(scene: Scene, rng: random.Random, *, either: float = 0.5) -> Turn | None:
    """Ask how two things lie to each other: a share `either` "left or right", others yes or no."""
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
    if rng.random() < either:
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
    question = rng.choice((f"Is there {article(what)}?", f"Do you see {article(what)}?"))
    return Turn("is_there", question, "Yes." if there else "No.")


def what_is(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask what lies at a place, or which thing is the largest or smallest."""
    thing = _only(scene, rng, lambda each: each.place)
    if thing is not None and rng.random() < 0.6:
        question = rng.choice((f"What is {thing.place}?", f"What do you see {thing.place}?"))
        return Turn("what_is", question, sentence(full_name(thing)))
    if len(scene.things) == 1:
        return None
    ordered = sorted(scene.things, key=lambda each: each.radius)
    largest = rng.random() < 0.6
    thing, next_one = (ordered[-1], ordered[-2]) if largest else (ordered[0], ordered[1])
    ratio = max(thing.radius, next_one.radius) / min(thing.radius, next_one.radius)
    if ratio < _MUCH_LARGER:
        return None
    word = "largest" if largest else "smallest"
    question = rng.choice((f"Which shape is the {word}?", f"What is the {word} shape?"))
    return Turn("what_is", question, sentence(article(" ".join(thing.pair))))


def background(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask for the background's color, where it has one."""
    if scene.fill == "graded":
        return None
    question = rng.choice(("What color is the background?", "Which color is the background?"))
    return Turn("background", question, f"{scene.background.capitalize()}.")


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
            rng.choice(("What does it say?", "What does the text say?", READ["plain"].text)),
        )
    )
    return Turn("not_there", question, CANNOT_TELL)


ABOUT_ONE: dict[str, Callable[[Scene, random.Random], Turn | None]] = {
    "describe": describe,
    "describe_in_detail": describe_in_detail,
    "colour": colour,
    "shape": shape,
    "count": count,
    "where": where,
    "relation": relation,
    "is_there": is_there,
    "what_is": what_is,
    "background": background,
    "size": how_large,
    "filled": filled,
    "not_there": not_there,
    "count_some": partial(count, of_all=0.0),
    "yes_or_no": partial(relation, either=0.0),
}
SHARES: Mapping[str, float] = {
    **{"describe": 6, "colour": 3, "shape": 3, "count": 7, "where": 3, "relation": 14},
    **{"is_there": 4, "what_is": 2, "size": 1, "filled": 1, "not_there": 2},
    **{"describe_in_detail": 1, "background": 1},
}


def turns(
    scene: Scene, rng: random.Random, number: int, shares: Mapping[str, float] = SHARES
) -> list[Turn]:
    """Return about `number` turns on one scene, some of them follow-ups to the one before.

    How two things lie to each other is asked no more often than there are things: what is left
    could be told from what was said already.
    """
    asked: list[Turn] = []
    kinds = list(shares)
    while len(asked) < number:
        kind = rng.choices(kinds, weights=list(shares.values()))[0]
        turn = ABOUT_ONE[kind](scene, rng)
        if turn is None or turn.question in {each.question for each in asked}:
            continue
        relations = sum(each.kind == "relation" for each in asked)
        if turn.kind == "relation" and relations == len(scene.things):
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


# --- which thing is meant -------------------------------------------------------------------------


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
