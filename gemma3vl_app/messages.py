"""A conversation as plain values: equal content is an equal value, wherever it came from."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import Any, Literal

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.pictures import Picture

Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Text:
    """A run of text inside a message."""

    text: str


Part = Text | Picture


@dataclass(frozen=True)
class Message:
    """One turn: its role and its parts in the order they were given."""

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in ("user", "assistant"):
            raise ConversationError(
                f"Message role is {self.role!r}; it must be 'user' or 'assistant'."
            )
        if self.role == "assistant" and self.pictures:
            raise ConversationError("An assistant message holds a picture; only user messages may.")

    @property
    def text(self) -> str:
        """The message's text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The message's pictures, in order."""
        return tuple(part for part in self.parts if isinstance(part, Picture))


@dataclass(frozen=True)
class Conversation:
    """Messages in order, and an optional system text that holds for all of them."""

    messages: tuple[Message, ...] = ()
    system: str | None = None

    def user(self, *parts: Part | str) -> Conversation:
        """Return this conversation with a user message of `parts` added; strings become `Text`."""
        message = Message("user", tuple(Text(p) if isinstance(p, str) else p for p in parts))
        return replace(self, messages=(*self.messages, message))

    def assistant(self, text: str) -> Conversation:
        """Return this conversation with an assistant message added."""
        return replace(self, messages=(*self.messages, Message("assistant", (Text(text),))))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Every picture of every message, in order."""
        return tuple(picture for message in self.messages for picture in message.pictures)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict that holds everything, pictures as base64."""
        return {
            "system": self.system,
            "messages": [
                {"role": message.role, "parts": [_part_to_dict(part) for part in message.parts]}
                for message in self.messages
            ],
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Conversation:
        """Read what `to_dict` wrote; else raises `ConversationError` or `PictureError`."""
        try:
            system = data["system"]
            if system is not None and not isinstance(system, str):
                raise ConversationError("The conversation's 'system' must be a string or null.")
            messages = tuple(
                Message(message["role"], tuple(_part_from_dict(part) for part in message["parts"]))
                for message in data["messages"]
            )
        except (KeyError, TypeError) as error:
            raise ConversationError(
                f"This is not a conversation: {type(error).__name__} at {error}. "
                "Expected what Conversation.to_dict() writes."
            ) from error
        return Conversation(messages, system)


def _part_to_dict(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {
        "type": "picture",
        "name": part.name,
        "crops": part.crops,
        "data": base64.b64encode(part.data).decode("ascii"),
    }


def _part_from_dict(data: dict[str, Any]) -> Part:
    if data["type"] == "text":
        if not isinstance(data["text"], str):
            raise ConversationError("A text part's 'text' must be a string.")
        return Text(data["text"])
    if data["type"] == "picture":
        try:
            encoded = base64.b64decode(data["data"], validate=True)
        except ValueError as error:  # binascii.Error, or characters outside ASCII
            raise ConversationError("A picture part's 'data' is not valid base64.") from error
        return Picture.open(encoded, name=data["name"], crops=data["crops"])
    raise ConversationError(f"Unknown part type {data['type']!r}; expected 'text' or 'picture'.")
