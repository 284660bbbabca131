"""What the panel at a word is drawn from: `assets/why.js` draws it.

Pictures with heat go to the page that asked as data, never as files that somebody could fetch.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from gemma3vl_app.generation import Token
from gemma3vl_app.webui.conversation_view import picture_values
from gemma3vl_app.webui.explanation import METHODS, Drawing, Found
from gemma3vl_app.webui.words import Words, texts_of

_QUALITY = 85  # of drawings, as JPEG
_SIGNS = {"\n": "↵", "\t": "⇥", " ": "␣"}  # how white space is shown where it is all there is


def as_values(
    found: Found, words: Words, *, number: int, word: str, files: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what the panel shows of `found`, in the page's language.

    `number` is the page's own, of what it asked; `files` are the pictures before the answer.
    """
    texts = texts_of(words)
    return {
        "number": number,
        "title": texts["why_word"].format(word=word),
        "method": found.method,
        "methods": [
            {"name": name, "label": texts[f"why_{name}"], "short": texts[f"why_{name}_short"]}
            for name in (METHODS if files else ())
        ],
        "says": texts[f"why_{found.method}_says" if files else "why_no_picture"],
        "effect": _effect(found, texts),
        "exactly": found.exactly,
        "pictures": _pictures(found.drawings, files, texts),
        "is_drawn": bool(found.drawings),
        "tokens": _tokens(found.tokens),
        "note": _note(found, texts),
        "done": found.done,
        "total": found.total,
        "is_over": found.is_over,
        "line": found.error or (texts["why_stopped"] if found.was_stopped else ""),
        "is_error": bool(found.error),
        "words": {
            name: texts[name]
            for name in ("close", "stop", "why_sure", "why_instead", "why_exactly", "why_working")
        },
    }


def _note(found: Found, texts: dict[str, str]) -> str:
    if not found.wrote:
        return ""
    return texts["why_other_model"].format(wrote=found.wrote, reads=found.reads)


def _effect(found: Found, texts: dict[str, str]) -> str:
    """Say what hiding the strongest part does: its colour is the same, be that much or nothing."""
    if found.method != "occlusion" or not found.drawings:
        return ""
    before = sum(token.logprob or 0.0 for token in found.tokens)
    after = min(0.0, before - found.strongest)
    return texts["why_effect"].format(
        before=percent(math.exp(before)), after=percent(math.exp(after))
    )


def percent(share: float) -> str:
    """Return a share as people read it: what is tiny is not told as nothing."""
    return "< 1 %" if 0 < share < 0.005 else f"{share:.0%}".replace("%", " %")


# --- pictures ---


def _pictures(
    drawings: Sequence[Drawing], files: Sequence[str], texts: dict[str, str]
) -> list[dict[str, Any]]:
    """Return the pictures with their heat, or as they are while there is none yet."""
    shown = []
    for number, file in enumerate(files):
        values: dict[str, Any] = {**picture_values(file), "crops": [], "caption": ""}
        values["alt"] = texts["why_picture"].format(number=number + 1)
        if number < len(drawings):
            drawing = drawings[number]
            values["url"] = data_url(drawing.image)
            values["crops"] = [data_url(crop) for crop in drawing.crops]
            if len(files) > 1:
                share = percent(drawing.share)
                values["caption"] = texts["why_share"].format(number=number + 1, share=share)
        shown.append(values)
    return shown


def data_url(image: Image.Image) -> str:
    """Return a picture as an address that holds all of it."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "jpeg", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# --- how sure the model was ---


def _tokens(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Return the word's tokens, each with its probability and what else was likely.

    Those that together make up one character are told as one.
    """
    told: list[dict[str, Any]] = []
    logprob, first = 0.0, None
    for token in tokens:
        first = first or token
        logprob += token.logprob or 0.0
        if token.text:
            others = [
                {"text": visible(each.text), "percent": percent(math.exp(each.logprob))}
                for each in first.alternatives
                if each.id != first.id
            ]
            probability = math.exp(logprob)
            told.append(
                {
                    "text": visible(token.text),
                    "probability": round(probability, 3),
                    "percent": percent(probability),
                    "others": others,
                }
            )
            logprob, first = 0.0, None
    return told


def visible(text: str) -> str:
    """Return a token's text without the space around it, or signs where that is all of it."""
    return text.strip() or "".join(_SIGNS.get(sign, sign) for sign in text) or "∅"
