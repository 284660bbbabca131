"""Where in the pictures an answer comes from, by three methods that show different things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gemma3vl_app.backends.protocol import Backend, Explains
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.explain.heat import Heat, HeatMap, square_maps
from gemma3vl_app.explain.question import Question, Words, question
from gemma3vl_app.generation import Answer, Box, Progress, Report
from gemma3vl_app.messages import Conversation
from gemma3vl_app.traces import Attention, Floats, Occlusion, Saliency

ATTENTION_SAYS = (
    "Where the position that wrote the words read from. What was read need not have mattered: "
    "attention is not cause."
)
ROLLOUT_SAYS = (
    "Attention followed down through all layers, as if they only mixed positions. What was mixed "
    "in need not have mattered: attention is not cause."
)
OCCLUSION_SAYS = (
    "How much less likely the words become when a part is hidden: what they depend on. Two things "
    "that each suffice hide one another, and a hidden part is itself something to see."
)
SALIENCY_SAYS = (
    "How the words' log-probability would change with each part, to first order. Only small "
    "changes count: where the model is quite sure, gradients say little."
)

_WINDOW = 2  # cells of the grid that a hidden region is wide and high


def attention(
    backend: Backend | Explains,
    conversation: Conversation,
    answer: Answer | str | None = None,
    words: Words = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    rollout: bool = False,
    adapter: str | None = None,
    session: str = "",
    progress: Report | None = None,
) -> Heat:
    """Return how much attention went from `words` of the answer to each part of the pictures.

    The attention weights of the position that predicted each token, averaged over `layers` (None:
    the global ones, which see everything), `heads` (None: all) and the words' tokens; with
    `rollout` followed down through all layers instead. `answer` None is the one that `conversation`
    ends with, `words` a part of it (its first occurrence), numbers of tokens, or all of it.
    """
    asked = question(
        backend, conversation, answer, words, adapter=adapter, session=session, progress=progress
    )
    _check_pictures(asked)
    traced = asked.trace(
        Attention(
            tokens=asked.chosen,
            layers=None if layers is None else tuple(layers),
            heads=None if heads is None else tuple(heads),
            rollout=rollout,
        )
    )
    mean = traced.weights.mean(0)  # (L,)
    values = [mean[place.start : place.stop] for place in traced.places]
    return Heat(
        method="attention rollout" if rollout else "attention",
        says=ROLLOUT_SAYS if rollout else ATTENTION_SAYS,
        words=asked.words,
        pictures=asked.conversation.pictures,
        maps=square_maps(values, traced.places),
        unit="share of attention",
    )


def saliency(
    backend: Backend | Explains,
    conversation: Conversation,
    answer: Answer | str | None = None,
    words: Words = None,
    *,
    through_tower: bool = False,
    adapter: str | None = None,
    session: str = "",
    progress: Report | None = None,
) -> Heat:
    """Return gradient x input of the words' summed log-probability, over the pictures.

    At the projector's output, a number for each of a picture's soft tokens; `through_tower` goes on
    to the pixels, which takes a pass back through the vision tower too. `answer` and `words` as for
    `attention`.
    """
    asked = question(
        backend, conversation, answer, words, adapter=adapter, session=session, progress=progress
    )
    _check_pictures(asked)
    traced = asked.trace(Saliency(tokens=asked.chosen, through_tower=through_tower))
    if through_tower:
        maps = tuple(
            HeatMap(place.picture, place.box, cells)
            for place, cells in zip(traced.places, traced.pixels, strict=True)
        )
    else:
        maps = square_maps(traced.soft_tokens, traced.places)
    return Heat(
        method="saliency to the pixels" if through_tower else "saliency",
        says=SALIENCY_SAYS,
        words=asked.words,
        pictures=asked.conversation.pictures,
        maps=maps,
        unit="nats, to first order",
    )


def occlusion(
    backend: Backend | Explains,
    conversation: Conversation,
    answer: Answer | str | None = None,
    words: Words = None,
    *,
    cells: int = 6,
    adapter: str | None = None,
    session: str = "",
    progress: Report | None = None,
) -> Heat:
    """Return how much less likely `words` become when a part of a picture is hidden, part by part.

    A square of 2 x 2 cells of a grid of `cells` x `cells` moves over each picture and is painted in
    the picture's mean colour, in its crops too. A cell's heat is the mean, over the squares that
    hide it, of the words' log-probability with nothing hidden less that with the square hidden.
    That takes (`cells` + 1)^2 answers a picture, computed in batches. `answer` and `words` as for
    `attention`.
    """
    asked = question(
        backend, conversation, answer, words, adapter=adapter, session=session, progress=progress
    )
    _check_pictures(asked)
    if not 2 <= cells <= 64:
        raise ConversationError(f"cells is {cells}; it must be between 2 and 64.")
    maps = []
    pictures = asked.conversation.pictures
    for number, picture in enumerate(pictures):
        asked = replace(asked, progress=_of_all(progress, number, len(pictures)))
        squares, regions = _squares(cells, picture.width, picture.height)
        traced = asked.trace(Occlusion(tokens=asked.chosen, picture=number, regions=regions))
        lost = (traced.shown - traced.hidden).sum(1)  # (regions,) nats
        maps.append(HeatMap(number, None, _means(cells, squares, lost)))
    return Heat(
        method="occlusion",
        says=OCCLUSION_SAYS,
        words=asked.words,
        pictures=asked.conversation.pictures,
        maps=tuple(maps),
        unit="nats lost",
    )


def _of_all(progress: Report | None, number: int, count: int) -> Report | None:
    """Return what tells one picture's steps as a part of those of all `count` pictures."""
    if progress is None:
        return None

    def tell(step: Progress) -> None:
        done, total = number * step.total + step.done, count * step.total
        progress(replace(step, done=done, total=total) if step.stage == "tracing" else step)

    return tell


def _squares(cells: int, width: int, height: int) -> tuple[list[tuple[int, int]], tuple[Box, ...]]:
    """Return each square's first row and column of the grid (from -1), and its box in pixels."""
    starts = range(1 - _WINDOW, cells)

    def edge(cell: int, side: int) -> int:
        return round(min(max(cell, 0), cells) * side / cells)

    squares = [(row, column) for row in starts for column in starts]
    boxes = tuple(
        (
            edge(column, width),
            edge(row, height),
            edge(column + _WINDOW, width),
            edge(row + _WINDOW, height),
        )
        for row, column in squares
    )
    return squares, boxes


def _means(cells: int, squares: list[tuple[int, int]], lost: Floats) -> Floats:
    """Return for each cell (cells, cells) the mean of `lost` over the squares that cover it."""
    total = np.zeros((cells, cells), dtype=np.float32)
    count = np.zeros((cells, cells), dtype=np.float32)
    for (row, column), value in zip(squares, lost, strict=True):
        covered = (
            slice(max(0, row), row + _WINDOW),
            slice(max(0, column), column + _WINDOW),
        )
        total[covered] += value
        count[covered] += 1
    return total / count


def _check_pictures(asked: Question) -> None:
    if not asked.conversation.pictures:
        raise ConversationError(
            "There is no picture in the conversation before this answer. "
            "See how sure the model was of its words with explain.tokens."
        )
    if not asked.chosen:
        raise ConversationError("The answer has no words to explain.")
