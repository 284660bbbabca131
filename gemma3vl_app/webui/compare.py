"""The same question and pictures under two settings, side by side.

Models are loaded beside the one that answers, or one after the other where they do not fit; the one
that answered before answers again afterwards, and what was loaded for the comparison goes.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError, Gemma3VLError, public_text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.drafts import DraftPictures
from gemma3vl_app.webui.models import Before
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

    Raises `Gemma3VLError` for a question or pictures that cannot be sent.
    """
    if not question.strip():
        raise ConversationError("Write a question first; pictures can go with it.")
    salt = secrets.token_hex(16)
    try:
        opened = DraftPictures(desk.pictures).open(desk.uploaded(list(files)), salt)
    finally:
        desk.pictures.forget(salt)
    pictures = [picture for _, picture in opened]
    if desk.models is None or not any(side.model for side in sides):
        yield from _columns(desk, owner, question.strip(), pictures, sides, None)
        return
    models, shown = desk.models, (Column(), Column())
    before = models.lend()
    try:
        for shown in _columns(desk, owner, question.strip(), pictures, sides, before):
            yield shown
    except GeneratorExit:  # the page is gone: whoever closes us is not kept waiting for a load
        threading.Thread(target=models.put_back, args=(before,), daemon=True).start()
        raise
    except BaseException:
        models.put_back(before)
        raise
    if error := models.put_back(before):
        yield shown[0], replace(shown[1], line=f"{shown[1].line} {error}")


def _columns(
    desk: Desk,
    owner: str,
    question: str,
    pictures: Sequence[Picture],
    sides: tuple[Side, Side],
    before: Before | None,
) -> Iterator[tuple[Column, Column]]:
    columns = [Column(), Column()]
    # What answers now goes first: the other side may have to take its place.
    for number in sorted((0, 1), key=lambda number: bool(sides[number].model)):
        for column in _answer(desk, owner, question, pictures, sides[number], before):
            columns[number] = column
            yield columns[0], columns[1]


def _answer(
    desk: Desk,
    owner: str,
    question: str,
    pictures: Sequence[Picture],
    side: Side,
    before: Before | None,
) -> Iterator[Column]:
    try:
        backend = (yield from _load(desk, owner, side, before)) if side.model else desk.backend()
        yield from _stream(backend, question, pictures, side.settings)
    except Gemma3VLError as error:
        yield Column("", public_text(error))


def _load(
    desk: Desk, owner: str, side: Side, before: Before | None
) -> Generator[Column, None, Backend]:
    if desk.models is None or before is None:
        raise ConversationError("This server has one model only.")
    loading = desk.models.borrow(owner, side.model, side.weights, before)
    while True:
        try:
            yield Column("", next(loading))
        except StopIteration as ended:
            backend: Backend = ended.value
            return backend


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
    told = (sentence(summary(answer)), breakdown(answer), about.model)
    yield Column(answer.text, " · ".join(filter(None, told)))
