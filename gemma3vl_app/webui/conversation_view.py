"""The conversation on the page: a component that draws plain values, text as text.

`assets/conversation.js` draws it in the browser and sends back what a person does with a message.
What it gets is made here. Nothing of it is ever markup: text of people and models cannot become
HTML, load anything or run anything.
"""

from __future__ import annotations

import html
import math
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from PIL import Image

from gemma3vl_app.generation import Token
from gemma3vl_app.webui.view import Shown, View

FILE_ROUTE = "gradio_api/file="  # relative to the page, which may lie below a proxy's path
_TEMPLATE = '<div class="conversation" role="log" aria-live="polite" aria-label="{label}"></div>'


def conversation(label: str, **options: Any) -> gr.HTML:
    """Return the component; its `select` event brings an action and the message it is about."""
    return gr.HTML(
        None,
        html_template=_TEMPLATE.format(label=html.escape(label)),
        css_template="",
        js_on_load=asset("conversation.js"),
        apply_default_css=False,
        **options,
    )


def asset(name: str) -> str:
    """Return the text of a script or style of the page."""
    return resources.files("gemma3vl_app.webui").joinpath("assets", name).read_text("utf-8")


def as_values(
    view: View, words: dict[str, str], *, show_confidence: bool = False
) -> dict[str, Any]:
    """Return what the component draws for a view; `words` are its labels in the page's language."""
    return {
        "messages": [_message(shown) for shown in view.messages],
        "answering": view.answering,
        "can_continue": view.can_continue,
        "show_confidence": show_confidence,
        "words": words,
    }


def _message(shown: Shown) -> dict[str, Any]:
    return {
        "role": shown.role,
        "text": shown.text,
        "pictures": [_picture(file) for file in shown.files],
        "version": shown.version,
        "versions": shown.versions,
        "tokens": [_token(each) for each in shown.tokens] or None,
    }


def _picture(file: str) -> dict[str, Any]:
    with Image.open(file) as image:  # one of ours: only its header is read
        width, height = image.size
    name = Path(file).name.split("-", 1)[-1]
    return {"url": FILE_ROUTE + quote(file), "name": name, "width": width, "height": height}


def _token(token: Token) -> list[Any]:
    """Return a token's text, its probability, and the other choices as lines to read."""
    probability = math.exp(token.logprob or 0.0)
    others = [
        f"{each.text!r} {math.exp(each.logprob):.0%}"
        for each in token.alternatives
        if each.id != token.id
    ]
    return [token.text, round(probability, 3), others]
