"""Gemma 3's chat template as code: from a conversation to a row of pieces, in reading order.

Renders what the published jinja template renders, for every conversation that template accepts. It
is a constant of this program, so no model file and no request can bring its own. Knows nothing of
token ids.

Beyond the published template:

* Consecutive messages of one role are one turn (the template raises): their texts are joined with a
  blank line, as it joins the system text; next to a picture, which brings blank lines of its own,
  with nothing.
* A system text counts whole, and one of white space only counts as none.
* A conversation that ends with the assistant is an answer to go on with: its turn stays open and
  its end is not trimmed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.messages import Conversation, Message, Text
from gemma3vl_app.pictures import Picture

# The processor's words around a picture's placeholders (transformers' processing_gemma3.py).
BEFORE_IMAGE = AFTER_IMAGE = "\n\n"
BEFORE_CROPPED = "Here is the original image "
BEFORE_CROPS = " and here are some crops to help you see better "
BETWEEN_CROPS = " "

BLANK_LINE = "\n\n"


class Control(Enum):
    """A control token, by its role."""

    BOS = "bos"
    START_OF_TURN = "start_of_turn"
    END_OF_TURN = "end_of_turn"


@dataclass(frozen=True)
class AnswerText:
    """An assistant turn's text: `given` as the conversation holds it, `rendered` as trimmed."""

    given: str
    rendered: str


Piece = str | Control | AnswerText | Picture


def validate(conversation: Conversation, *, takes_pictures: bool) -> None:
    """Raise `ConversationError` unless `conversation` can be rendered whole."""
    if conversation.system is not None:
        check_text(conversation.system, "The system text")
    if not conversation.messages:
        raise ConversationError("The conversation has no message. Add a question or a picture.")
    if conversation.messages[0].role != "user":
        raise ConversationError(
            "Message 1 is the assistant's. Start the conversation with a user message."
        )
    for number, message in enumerate(conversation.messages, start=1):
        for part in message.parts:
            if isinstance(part, Text):
                check_text(part.text, f"Message {number}")
        if message.pictures and not takes_pictures:
            raise ConversationError(
                f"Message {number} holds a picture, but this model reads text only. "
                "Load a model with vision (4B, 12B or 27B), or remove the picture."
            )
        if message.role == "user" and not message.pictures and not message.text.strip():
            raise ConversationError(f"Message {number} is empty. Write a text or add a picture.")


def check_text(text: str, where: str) -> None:
    """Raise `ConversationError`, beginning with `where`, unless `text` is valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # a lone surrogate, from broken JSON or a bad file name
        raise ConversationError(
            f"{where} holds half a character at position {error.start + 1} (a lone surrogate). "
            "Remove it or paste the text again."
        ) from error


def render(conversation: Conversation) -> Iterator[Piece]:
    """Yield the pieces of a valid conversation; adjacent strings belong together."""
    system = conversation.system if (conversation.system or "").strip() else None
    turns = [list(group) for _, group in groupby(conversation.messages, key=lambda m: m.role)]
    yield Control.BOS
    for index, messages in enumerate(turns):
        yield Control.START_OF_TURN
        if messages[0].role == "user":
            yield "user\n"
            if index == 0 and system is not None:
                yield system + BLANK_LINE
            yield from _user_turn(messages)
        else:
            is_open = index == len(turns) - 1
            yield "model\n"
            yield _answer(messages, is_open=is_open)
            if is_open:
                return
        yield Control.END_OF_TURN
        yield "\n"
    yield Control.START_OF_TURN
    yield "model\n"


def _user_turn(messages: list[Message]) -> Iterator[str | Picture]:
    previous: str | Picture | None = None
    for message in messages:
        parts = [part.text.strip() if isinstance(part, Text) else part for part in message.parts]
        parts = [part for part in parts if part != ""]
        if isinstance(previous, str) and isinstance(parts[0], str):
            yield BLANK_LINE
        yield from parts
        previous = parts[-1]


def _answer(messages: list[Message], *, is_open: bool) -> AnswerText:
    given = BLANK_LINE.join(message.text for message in messages)
    trimmed = [_trimmed(message, keep_end=False) for message in messages]
    if is_open:
        trimmed[-1] = _trimmed(messages[-1], keep_end=True)
    return AnswerText(given, BLANK_LINE.join(trimmed))


def _trimmed(message: Message, *, keep_end: bool) -> str:
    texts = [part.text for part in message.parts if isinstance(part, Text)]
    last = texts.pop() if keep_end and texts else ""
    return "".join(text.strip() for text in texts) + last.lstrip()
