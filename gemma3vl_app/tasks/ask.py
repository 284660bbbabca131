"""Tasks answered in words: caption a picture, answer a question, compare pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Answer
from gemma3vl_app.messages import Conversation, Part, Text
from gemma3vl_app.pictures import Crops, Picture, PictureSource
from gemma3vl_app.tasks import prompts
from gemma3vl_app.tasks.requests import TaskOptions, TaskRequest, open_pictures
from gemma3vl_app.tasks.results import Caption, Comparison, Reply


def caption(
    backend: Backend,
    picture: PictureSource,
    *,
    detail: prompts.Detail = "short",
    crops: Crops = "auto",
    **options: Unpack[TaskOptions],
) -> Caption:
    """Describe a picture in one sentence, or with `detail="detailed"` in a paragraph.

    `options` are those of `Backend.stream`. Raises `PictureError` for a bad picture.
    """
    opened = Picture.open(picture, crops=crops)
    return Caption(_ask(backend, caption_request(opened, detail=detail), options))


def answer(
    backend: Backend,
    pictures: PictureSource | Iterable[PictureSource],
    question: str,
    *,
    crops: Crops = "auto",
    **options: Unpack[TaskOptions],
) -> Reply:
    """Answer a question about one picture or several.

    `options` are those of `Backend.stream`. Raises `PictureError` for a bad picture.
    """
    return Reply(_ask(backend, answer_request(open_pictures(pictures, crops), question), options))


def compare(
    backend: Backend,
    first: PictureSource,
    second: PictureSource,
    *more: PictureSource,
    question: str | None = None,
    crops: Crops = "auto",
    **options: Unpack[TaskOptions],
) -> Comparison:
    """Say what two pictures or more have in common and how they differ, or answer `question`.

    The model knows them as "Picture 1", "Picture 2" and so on, in the order given. `options` are
    those of `Backend.stream`. Raises `PictureError` for a bad picture.
    """
    pictures = [Picture.open(each, crops=crops) for each in (first, second, *more)]
    return Comparison(_ask(backend, compare_request(pictures, question), options))


def caption_request(picture: Picture, *, detail: prompts.Detail = "short") -> TaskRequest:
    """Return what `caption` asks."""
    if detail not in prompts.CAPTION:
        raise ConversationError(f"detail is {detail!r}; it must be 'short' or 'detailed'.")
    return TaskRequest(Conversation().user(picture, prompts.CAPTION[detail].text))


def answer_request(pictures: Iterable[Picture], question: str) -> TaskRequest:
    """Return what `answer` asks."""
    return TaskRequest(Conversation().user(*pictures, _checked(question)))


def compare_request(pictures: Iterable[Picture], question: str | None = None) -> TaskRequest:
    """Return what `compare` asks; each picture stands behind its number."""
    parts: list[Part] = []
    for number, picture in enumerate(pictures, start=1):
        parts += [Text(prompts.PICTURE_LABEL.format(number=number)), picture]
    if len(parts) < 4:
        raise ConversationError("One picture cannot be compared. Give two or more.")
    said = prompts.COMPARE.text if question is None else _checked(question)
    return TaskRequest(Conversation().user(*parts, said))


def _ask(backend: Backend, request: TaskRequest, options: TaskOptions) -> Answer:
    with request.stream(backend, options) as stream:
        return stream.answer


def _checked(question: str) -> str:
    if not question.strip():
        raise ConversationError("The question is empty. Write one.")
    return question
