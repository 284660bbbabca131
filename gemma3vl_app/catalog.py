"""The models this package knows by name: what each is called and what it can do, for people.

Pure data; knows nothing of files, tensors or memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A model with a name: `title` fits a menu, `knows` is a sentence or two on its skills."""

    name: str
    title: str
    knows: str


DEMO = Entry(
    name="demo",
    title="Demo: Gemma 3 270M with a small vision tower",
    knows=(
        "It knows drawn scenes of 1 to 4 coloured shapes, in one or two pictures, one question "
        "at a time. It cannot read text, knows no follow-up questions, and is often wrong."
    ),
)
BASE_270M = Entry(
    name="270m-pt",
    title="Gemma 3 270M base (text only)",
    knows=(
        "It continues text. It was not trained to chat and takes no pictures; "
        "its weights come from a 4-bit release."
    ),
)

MODELS: dict[str, Entry] = {entry.name: entry for entry in (DEMO, BASE_270M)}


def published_config(size: str) -> dict[str, Any]:
    """Return the `config.json` that Google published for `size` ("4b"), sparse as it is.

    Values it leaves out are transformers' defaults for the architecture.
    """
    text = resources.files("gemma3vl_app").joinpath("configs", f"{size}.json").read_text("utf-8")
    return dict(json.loads(text))
