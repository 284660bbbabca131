"""What is learned from: conversations that end in an answer, their pictures opened only when used.

Knows how an item of training data is written; knows nothing of files, tokens or models. An item is
a mapping in one of three forms:

* `{"messages": [...], "images": [...]}` as `gemma3vl export` writes it: a message has a `role` and
  a `content`, a text or a list of `{"type": "text", "text": ...}` and `{"type": "image"}`, which
  stands for the next of `images`; where no message has such a place, the pictures come before the
  first question, as trl has it;
* the same without `images`, where each place names its picture: `{"type": "image", "path": ...}`;
* `{"picture": ..., "question": ..., "answer": ...}`; the picture may be a list of some, or absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.lazy_pictures import LazyPicture
from gemma3vl_app.messages import Conversation, Message, Part, Role, Text

ROLES: Mapping[str, Role] = {"user": "user", "assistant": "assistant", "model": "assistant"}
SHOWN = 60  # characters of a foreign text in a message


@dataclass(frozen=True)
class Turn:
    """One message: its role, and its texts and pictures in order."""

    role: Role
    parts: tuple[str | LazyPicture, ...]

    @property
    def text(self) -> str:
        """The turn's texts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Example:
    """A conversation to learn from: each of its answers is learned, what others say is not.

    `where` tells people which item of which file it is.
    """

    where: str
    turns: tuple[Turn, ...]
    system: str | None = None

    @property
    def pictures(self) -> tuple[LazyPicture, ...]:
        """The pictures of all turns, in order."""
        return tuple(
            part for turn in self.turns for part in turn.parts if not isinstance(part, str)
        )

    def conversation(self) -> Conversation:
        """Open the pictures and return the conversation; raises `PictureError`."""
        return Conversation(
            tuple(Message(turn.role, tuple(map(_part, turn.parts))) for turn in self.turns),
            self.system,
        )


@dataclass(frozen=True)
class Problem:
    """An item that cannot be learned from: where it is, and what is wrong with it."""

    where: str
    what: str


OpenPicture = Callable[[Any], LazyPicture]


def example_from(
    where: str, item: Mapping[str, Any], open_picture: OpenPicture, question: str = ""
) -> Example | Problem:
    """Return the example that `item` says, in any of the forms above.

    `open_picture` makes a lazy picture of whatever an item names one by; `question` is asked where
    an item has none.
    """
    try:
        if "messages" in item:
            example = _from_messages(where, item, open_picture)
        else:
            example = _from_answer(where, item, open_picture, question)
        _check_answers(example)
    except _Unusable as error:
        return Problem(where, str(error))
    except ConversationError:  # a picture in an answer
        return Problem(where, "an answer holds a picture")
    return example


class _Unusable(Exception):
    """What is wrong with an item: the words that follow its name."""


def _from_answer(
    where: str, item: Mapping[str, Any], open_picture: OpenPicture, question: str
) -> Example:
    if "answer" not in item:
        raise _Unusable("neither 'messages' nor 'answer'")
    given = item.get("picture")
    named = given if isinstance(given, list) else [] if given is None else [given]
    asked = item.get("question") or question
    parts: list[str | LazyPicture] = [_lazy(each, open_picture) for each in named]
    if not isinstance(asked, str):
        raise _Unusable("a question that is no text")
    if asked.strip():
        parts.append(asked)
    answer = item["answer"]
    if not isinstance(answer, str):
        raise _Unusable("an answer that is no text")
    if not parts:
        raise _Unusable("neither a picture nor a question")
    return Example(where, (Turn("user", tuple(parts)), Turn("assistant", (answer,))))


def _from_messages(where: str, item: Mapping[str, Any], open_picture: OpenPicture) -> Example:
    messages, images = item["messages"], item.get("images") or []
    if not isinstance(messages, list) or not isinstance(images, list):
        raise _Unusable("'messages' or 'images' that is no list")
    left = iter(enumerate(images))
    turns: list[Turn] = []
    system = None
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in {*ROLES, "system"}:
            raise _Unusable(f"a message whose role is {str(role)[:SHOWN]!a}")
        parts = tuple(_parts(message.get("content"), left, open_picture))
        if role != "system":
            turns.append(Turn(ROLES[role], parts))
        elif turns or system is not None:
            raise _Unusable("a system message behind others")
        else:
            system = "".join(part for part in parts if isinstance(part, str))
    example = Example(where, tuple(turns), system)
    surplus = tuple(_lazy(named, open_picture) for _, named in left)
    if not surplus:
        return example
    if example.pictures or not turns or turns[0].role != "user":
        raise _Unusable("more pictures in 'images' than places for them")
    if any("<image>" in turn.text for turn in turns):
        raise _Unusable("'<image>' in a text, where {'type': 'image'} would be a picture's place")
    first = Turn("user", (*surplus, *turns[0].parts))
    return Example(where, (first, *turns[1:]), system)


def _parts(
    content: Any, images: Iterator[tuple[int, Any]], open_picture: OpenPicture
) -> Iterator[str | LazyPicture]:
    if isinstance(content, str):
        yield content
        return
    if not isinstance(content, list):
        raise _Unusable("a message without content")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            yield part["text"]
        elif kind == "image":
            yield _lazy(_picture_of(part, images), open_picture)
        else:
            raise _Unusable(f"a part of type {str(kind)[:SHOWN]!a}")


def _picture_of(place: Mapping[str, Any], images: Iterator[tuple[int, Any]]) -> Any:
    """Return what a place names its picture by, or the next of the images."""
    named = [place[key] for key in ("path", "image", "url") if place.get(key) is not None]
    if named:
        return named[0]
    number, image = next(images, (None, None))
    if place.get("index") not in (None, number):
        raise _Unusable("a place whose 'index' is not the next picture's")
    return image


def _lazy(named: Any, open_picture: OpenPicture) -> LazyPicture:
    if named is None:
        raise _Unusable("a place for a picture, but no picture")
    try:
        return open_picture(named)
    except TypeError as error:
        raise _Unusable("a picture that is named by no path") from error


def _check_answers(example: Example) -> None:
    if not example.turns or example.turns[-1].role != "assistant":
        raise _Unusable("no answer at the end")
    if any(turn.role == "assistant" and not turn.text.strip() for turn in example.turns):
        raise _Unusable("an empty answer")
    for turn in example.turns:
        if turn.role == "assistant" and any(not isinstance(part, str) for part in turn.parts):
            raise _Unusable("an answer that holds a picture")


def _part(part: str | LazyPicture) -> Part:
    return Text(part) if isinstance(part, str) else part.open()
