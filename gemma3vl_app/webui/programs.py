"""One question at a time, for programs that speak gradio's protocol (`gradio_client`)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError, Gemma3VLError
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.drafts import DraftPictures
from gemma3vl_app.webui.view import Draft

Ask = Callable[[str, list[dict[str, Any]]], Iterator[str]]


def asking(desk: Desk) -> Ask:
    """Return the function that is offered to programs as `/ask`."""

    def ask(question: str, pictures: list[dict[str, Any]] = []) -> Iterator[str]:  # noqa: B006
        """Answer a question about pictures; yields all that was said so far.

        `pictures` are files that were uploaded with `gradio_client.handle_file`.
        """
        try:
            yield from _said(desk, question, pictures)
        except Gemma3VLError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return ask


def _said(desk: Desk, question: str, pictures: list[dict[str, Any]]) -> Iterator[str]:
    if not isinstance(question, str) or not question.strip():
        raise ConversationError("Write a question first; pictures can go with it.")
    named = [each.get("path") for each in pictures or [] if isinstance(each, dict)]
    draft = Draft(question, desk.uploaded(named))
    salt = secrets.token_hex(16)  # nothing is reused from, or for, anybody else
    opened = DraftPictures(desk.pictures).open(draft.files, salt)
    chat = Chat(desk.backend(), session=salt)
    limit = chat.backend.capabilities.answer_tokens
    said = ""
    try:
        with chat.stream(
            draft.text, images=[picture for _, picture in opened], max_new_tokens=limit
        ) as stream:
            for chunk in stream:
                if chunk.text:
                    said += chunk.text
                    yield said
    finally:
        desk.pictures.forget(salt)
