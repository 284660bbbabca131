"""What the page's box to write in is drawn from: `assets/composer.js` draws it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemma3vl_app.backends.protocol import Capabilities
from gemma3vl_app.tasks import prompts
from gemma3vl_app.webui.component import file_url
from gemma3vl_app.webui.drafts import Item, Weighed
from gemma3vl_app.webui.view import Draft, View
from gemma3vl_app.webui.words import Words, texts_of

# What data is asked for until somebody writes a schema of their own: fits receipts, forms, tables.
_DATA = {
    "type": "object",
    "properties": {
        "title": {"type": ["string", "null"]},
        "entries": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
                "required": ["name", "value"],
            },
        },
    },
    "required": ["title", "entries"],
}
SCHEMA = json.dumps(_DATA, indent=2)
WITH_SCHEMA = "preset_json"
_PRESETS = {  # the key of its name, and what it puts into the box; "" leaves what is there
    "preset_general": "",
    "preset_question": "Answer in one short sentence: ",
    "preset_short": prompts.CAPTION["short"].text,
    "preset_detailed": prompts.CAPTION["detailed"].text,
    "preset_read": prompts.READ["plain"].text,
    "preset_compare": prompts.COMPARE.text,
    WITH_SCHEMA: prompts.EXTRACT.text.format(schema=json.dumps(_DATA)),
}


def as_values(
    view: View,
    words: Words,
    about: Capabilities,
    *,
    draft_number: int = 0,
    weighed: tuple[int, Weighed] = (0, Weighed()),
) -> dict[str, Any]:
    """Return what the box is drawn from.

    A draft is taken over once, when `draft_number` is new. `weighed` is the last answer to the
    box's own question what its pictures cost, with the number of the question.
    """
    texts, items = texts_of(words), weighed[1].items
    return {
        "words": words,
        "answering": view.answering,
        "asked": next((m.text for m in reversed(view.messages) if m.role == "user"), None),
        "takes_pictures": about.pictures,
        "presets": [
            {"key": key, "name": texts[key], "text": text}
            for key, text in _PRESETS.items()
            if about.pictures and (about.schema or key != WITH_SCHEMA)
        ],
        "draft": view.draft and {"number": draft_number, **_draft(view.draft)},
        "weighed": {
            "number": weighed[0],
            "items": None if items is None else [_item(item) for item in items],
            "used_tokens": weighed[1].used_tokens,
            "context_tokens": weighed[1].context_tokens,
            "error": weighed[1].error,
        },
    }


def _draft(draft: Draft) -> dict[str, Any]:
    files = [{"path": file, "url": file_url(file), "name": Path(file).name} for file in draft.files]
    return {"text": draft.text, "items": files}  # what they cost is asked for by the box


def _item(item: Item) -> dict[str, Any]:
    return {
        "path": item.file,
        "url": file_url(item.file),
        "name": item.name,
        "width": item.width,
        "height": item.height,
        "tokens": item.tokens,
        "crops": item.crops,
        "squashed": item.is_squashed,
    }
