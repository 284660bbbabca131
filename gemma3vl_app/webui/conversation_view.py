"""What the page's conversation is drawn from: `assets/conversation.js` draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from gemma3vl_app.generation import Token
from gemma3vl_app.webui.component import file_url
from gemma3vl_app.webui.view import Draft, Shown, View


def as_values(
    view: View,
    words: Mapping[str, str],
    *,
    examples: Sequence[Draft] = (),
    show_confidence: bool = False,
    explains: bool = False,
) -> dict[str, Any]:
    """Return what the component draws for a view.

    `words` are its labels in the page's language; `examples` are offered before the first message.
    With `explains`, words of answers can be clicked, to see why they are there.
    """
    return {
        "id": view.id,
        "examples": [
            {"question": example.text, "pictures": [file_url(file) for file in example.files]}
            for example in examples
        ],
        "messages": [_message(shown) for shown in view.messages],
        "answering": view.answering,
        "can_continue": view.can_continue,
        "show_confidence": show_confidence,
        "explains": explains,
        "words": words,
    }


def _message(shown: Shown) -> dict[str, Any]:
    return {
        "role": shown.role,
        "text": shown.text,
        "pictures": [picture_values(file) for file in shown.files],
        "version": shown.version,
        "versions": shown.versions,
        "tokens": [_token(each) for each in shown.tokens] or None,
    }


def picture_values(file: str) -> dict[str, Any]:
    """Return what a picture that is shown is drawn from."""
    try:
        with Image.open(file) as image:  # one of ours: only its header is read
            width, height = image.size
    except OSError:  # deleted in another tab, or by age
        width = height = 0
    name = Path(file).name.split("-", 1)[-1]
    return {"url": file_url(file), "name": name, "width": width, "height": height}


def _token(token: Token) -> list[Any]:
    """Return a token's text, its probability, and the other choices as lines to read."""
    probability = math.exp(token.logprob or 0.0)
    others = [
        f"{each.text!r} {math.exp(each.logprob):.0%}"
        for each in token.alternatives
        if each.id != token.id
    ]
    return [token.text, round(probability, 3), others]
