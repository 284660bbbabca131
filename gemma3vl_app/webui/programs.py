"""One question at a time, for programs that speak gradio's protocol (`gradio_client`)."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio.to_thread
import gradio as gr

from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError, Gemma3VLError, public_text
from gemma3vl_app.stream import Stream
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.drafts import DraftPictures
from gemma3vl_app.webui.view import Draft

Ask = Callable[[str, list[dict[str, Any]]], AsyncIterator[str]]


def asking(desk: Desk) -> Ask:
    """Return the function that is offered to programs as `/ask`."""

    async def ask(question: str, pictures: list[dict[str, Any]] = []) -> AsyncIterator[str]:  # noqa: B006
        """Answer a question about pictures; yields all that was said so far.

        `pictures` are files that were uploaded with `gradio_client.handle_file`.
        """
        try:
            async for said in _said(desk, question, pictures):
                yield said
        except Gemma3VLError as error:
            raise gr.Error(public_text(error), print_exception=False) from None

    return ask


async def _said(desk: Desk, question: str, pictures: list[dict[str, Any]]) -> AsyncIterator[str]:
    """Begin the answer on a thread, since that takes time; follow it on none.

    Many programs that wait for their next words then neither hold a thread each nor take turns
    with the server for every word.
    """
    salt = secrets.token_hex(16)  # nothing is reused from, or for, anybody else
    chat = Chat(desk.backend(), session=salt)
    said = ""
    try:
        stream = await anyio.to_thread.run_sync(_begin, desk, chat, question, pictures)
        async for chunk in stream:
            if chunk.text:
                said += chunk.text
                yield said
    finally:
        chat.stop()
        desk.pictures.forget(salt)


def _begin(desk: Desk, chat: Chat, question: str, pictures: list[dict[str, Any]]) -> Stream:
    """Check what a program has sent, and ask."""
    if not isinstance(question, str) or not question.strip():
        raise ConversationError("Write a question first; pictures can go with it.")
    named = [each.get("path") for each in pictures or [] if isinstance(each, dict)]
    draft = Draft(question, desk.uploaded(named))
    opened = DraftPictures(desk.pictures).open(draft.files, chat.session)
    return chat.stream(
        draft.text,
        images=[picture for _, picture in opened],
        max_new_tokens=chat.backend.capabilities.answer_tokens,
    )
