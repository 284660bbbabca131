"""A conversation as the messages of OpenAI's protocol. Knows nothing of options or HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby
from typing import Any

from gemma3vl_app.messages import Conversation, Message, Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting.template import BLANK_LINE

# What chat templates are made of. Servers take these for control tokens wherever they stand, also
# in people's text, which could so end its turn and speak as the model (knowledge: threats, 4).
_CONTROL = re.compile(
    r"(<)(?=(?:bos|eos|pad|unk|mask|s|/s|start_of_turn|end_of_turn|start_of_image|end_of_image"
    r"|image_soft_token|image|unused\d{1,4}|__\w+__)>|\|)"
    r"|(\[)(?=(?:multimodal|/?INST|IMG)\])",
    re.IGNORECASE,
)
WORD_JOINER = "\u2060"  # no width, no break: the text reads as before


def neutralised(text: str) -> str:
    """Return `text` with an invisible character in what would be control tokens for a server."""
    return _CONTROL.sub(lambda found: f"{found[0]}{WORD_JOINER}", text)


def messages_of(
    conversation: Conversation,
    url_of: Callable[[Picture], str],
    *,
    cleans: bool = False,
    crops: bool = False,
) -> list[dict[str, Any]]:
    """Return the messages that say `conversation`, which is valid.

    Consecutive messages of one role become one: most templates refuse them otherwise. `cleans`
    says that the server neutralises control tokens itself, `crops` that it takes them as "detail".
    """
    clean = (lambda text: text) if cleans else neutralised
    found: list[dict[str, Any]] = []
    if (system := conversation.system or "").strip():
        found.append({"role": "system", "content": clean(system)})
    for role, turn in groupby(conversation.messages, key=lambda message: message.role):
        parts = _joined(list(turn))
        if not any(isinstance(part, Picture) for part in parts):
            found.append({"role": role, "content": clean("".join(map(str, parts)))})
            continue
        content = [
            {"type": "text", "text": clean(part)}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": _image(part, url_of, crops=crops)}
            for part in parts
        ]
        found.append({"role": role, "content": content})
    return found


def _joined(messages: list[Message]) -> list[str | Picture]:
    """Return the parts of one turn, runs of text as one string each."""
    parts: list[str | Picture] = []
    for number, message in enumerate(messages):
        if number and parts and isinstance(parts[-1], str) and isinstance(message.parts[0], Text):
            parts[-1] += BLANK_LINE
        for part in message.parts:
            if isinstance(part, Text) and parts and isinstance(parts[-1], str):
                parts[-1] += part.text
            else:
                parts.append(part.text if isinstance(part, Text) else part)
    return [part for part in parts if part != ""]


def _image(picture: Picture, url_of: Callable[[Picture], str], *, crops: bool) -> dict[str, str]:
    image = {"url": url_of(picture)}
    if crops:
        image["detail"] = {"off": "low", "on": "high", "auto": "auto"}[picture.crops]
    return image
