"""Messages of a request as a `Conversation`: system texts first, pictures decoded, roles checked.

Works on plain turns, which both endpoints make of their own fields. Decoding takes time: call it
off the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemma3vl_app.api import pictures
from gemma3vl_app.api.failures import RequestError
from gemma3vl_app.api.limits import ApiLimits
from gemma3vl_app.messages import Conversation, Message, Part, Role, Text
from gemma3vl_app.remote_pictures import RemotePictures

_BLANK_LINE = "\n\n"


@dataclass(frozen=True)
class SentPicture:
    """A picture as it was sent; `param` is the field it stands in."""

    url: str
    detail: str
    param: str


@dataclass(frozen=True)
class Turn:
    """One message as it was sent; `param` is the field it stands in."""

    role: str
    parts: tuple[str | SentPicture, ...]
    param: str


def conversation(
    turns: Sequence[Turn],
    limits: ApiLimits,
    *,
    remote: RemotePictures | None = None,
    system: str | None = None,
    goes_on: bool = False,
) -> Conversation:
    """Return the conversation of `turns`, of which system turns have to be the first.

    `remote` fetches pictures. `system` comes before theirs. With `goes_on` the last turn is an
    answer to be continued, else a question. Raises `RequestError`, and `PictureError` for a picture
    that cannot be used.
    """
    if len(turns) > limits.messages:
        raise RequestError(
            f"{len(turns):,} messages were sent; the limit is {limits.messages:,}.",
            param=turns[0].param.partition(".")[0],
        )
    texts = [] if system is None else [system]
    said = list(turns)
    while said and said[0].role in ("system", "developer"):
        texts.append("".join(str(part) for part in said.pop(0).parts))
    _check_order(said, turns[-1].param if turns else None, goes_on=goes_on)
    _check_pictures(said, limits)
    number = 0
    messages = []
    for turn in said:
        parts: list[Part] = []
        for part in turn.parts:
            if isinstance(part, SentPicture):
                number += 1
                parts.append(pictures.open_url(part.url, part.detail, number, part.param, remote))
            else:
                parts.append(Text(part))
        messages.append(Message(_role(turn), tuple(parts)))
    return Conversation(tuple(messages), _BLANK_LINE.join(texts) if texts else None)


def _check_order(said: Sequence[Turn], last_param: str | None, *, goes_on: bool) -> None:
    for turn in said:
        if turn.role not in ("user", "assistant"):
            raise RequestError(
                f"'{turn.param}' is a {turn.role} message behind others. Put it at the beginning.",
                param=turn.param,
            )
    if not said:
        raise RequestError("There is no user message. Add a question.", param=last_param)
    if goes_on and said[-1].role != "assistant":
        raise RequestError(
            "'continue_final_message' needs an assistant message at the end.",
            param="continue_final_message",
        )
    if not goes_on and said[-1].role != "user":
        raise RequestError(
            f"'{said[-1].param}' is the last message and must be a user's. To have an answer "
            "continued, send continue_final_message: true with a chat completion.",
            param=said[-1].param,
        )


def _check_pictures(said: Sequence[Turn], limits: ApiLimits) -> None:
    sent = [part for turn in said for part in turn.parts if isinstance(part, SentPicture)]
    if len(sent) > limits.pictures:
        raise RequestError(
            f"The request has {len(sent)} pictures; the limit is {limits.pictures}. "
            "Leave some out.",
            param=sent[limits.pictures].param,
            code="too_many_images",
        )


def _role(turn: Turn) -> Role:
    return "assistant" if turn.role == "assistant" else "user"
