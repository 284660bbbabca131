"""The same question and pictures under two settings, side by side.

Two models that do not fit beside each other are loaded one after the other; the one that answered
before answers again afterwards.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError, Gemma3VLError
from gemma3vl_app.pictures import Picture
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.view import DEFAULTS, Settings
from gemma3vl_app.wording import breakdown, describe, sentence, summary


@dataclass(frozen=True)
class Side:
    """How one of the two is answered; a `model` of "" is the one that answers now."""

    model: str = ""
    weights: str = "auto"
    settings: Settings = DEFAULTS


@dataclass(frozen=True)
class Column:
    """What one side shows: its answer so far, and a line on how it stands or what it cost."""

    text: str = ""
    line: str = ""


def compare(
    desk: Desk, owner: str, question: str, files: Sequence[str], sides: tuple[Side, Side]
) -> Iterator[tuple[Column, Column]]:
    """Yield both columns as they grow; a side that fails says why, and the other is still tried.

    Raises `Gemma3VLError` for a question or pictures that cannot be sent, and where `owner` may not
    load what a side asks for.
    """
    if not question.strip():
        raise ConversationError("Write a question first; pictures can go with it.")
    pictures = [Picture.open(file) for file in files]
    now = desk.models.current_name if desk.models else ""
    columns = [Column(), Column()]
    try:
        for number, side in enumerate(sides):
            for column in _answer(desk, owner, question.strip(), pictures, side):
                columns[number] = column
                yield columns[0], columns[1]
    finally:
        if desk.models and now and desk.models.current_name != now:
            for _ in desk.models.act(owner, "use", now, "auto"):
                pass


def _answer(
    desk: Desk, owner: str, question: str, pictures: Sequence[Picture], side: Side
) -> Iterator[Column]:
    try:
        if side.model:
            yield from _load(desk, owner, side)
        yield from _stream(desk.backend(), question, pictures, side.settings)
    except Gemma3VLError as error:
        yield Column("", str(error))


def _load(desk: Desk, owner: str, side: Side) -> Iterator[Column]:
    if desk.models is None:
        raise ConversationError("This server has one model only.")
    for told in desk.models.act(owner, "use", side.model, side.weights):
        yield Column("", told)


def _stream(
    backend: Backend, question: str, pictures: Sequence[Picture], settings: Settings
) -> Iterator[Column]:
    about = backend.capabilities
    chat = Chat(backend, system=settings.system or None, session=secrets.token_hex(16))
    stream = chat.stream(
        question,
        images=list(pictures),
        crops=settings.crops,
        sampling=settings.sampling(about.sampling),
        max_new_tokens=settings.max_new_tokens or about.answer_tokens,
        adapter=settings.adapter,
    )
    said = ""
    with stream:
        for chunk in stream:
            said += chunk.text
            yield Column(said, sentence(describe(chunk.status)))
    answer = stream.answer
    yield Column(answer.text, f"{sentence(summary(answer))} · {breakdown(answer)} · {about.model}")
