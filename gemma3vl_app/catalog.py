"""The models this package knows by name: what each is called and what it can do, for people.

Data, and no more of files than whether a folder exists; knows nothing of tensors or memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from gemma3vl_app.errors import LoadError

DEFAULT_ANSWER_TOKENS = 1024


@dataclass(frozen=True)
class Entry:
    """A model with a name: `title` fits a menu, `knows` is a sentence or two on its skills.

    `answer_tokens` is a sensible limit for one of its answers.
    """

    name: str
    title: str
    knows: str
    answer_tokens: int = DEFAULT_ANSWER_TOKENS


DEMO = Entry(
    name="demo",
    title="Demo: Gemma 3 270M with a small vision tower",
    knows=(
        "It knows drawn scenes of 1 to 4 coloured shapes, in one or two pictures, one question "
        "at a time. It cannot read text, knows no follow-up questions, and is often wrong."
    ),
    answer_tokens=96,  # a sentence is all it knows; on strange questions it repeats itself
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


def check_source(source: str | Path) -> None:
    """Raise `LoadError` unless `source` is a name known here or a folder; looks at nothing else."""
    if source in MODELS or Path(source).expanduser().is_dir():
        return
    names = ", ".join(repr(name) for name in MODELS)
    raise LoadError(
        f"There is no model or folder {Path(source).name!r}. "
        f"What can be loaded today: {names}, or a Gemma 3 checkpoint's folder (safetensors)."
    )


def published_config(size: str) -> dict[str, Any]:
    """Return the `config.json` that Google published for `size` ("4b"), sparse as it is.

    Values it leaves out are transformers' defaults for the architecture.
    """
    text = resources.files("gemma3vl_app").joinpath("configs", f"{size}.json").read_text("utf-8")
    return dict(json.loads(text))


def find(name: str) -> Entry | None:
    """Placeholder."""
    return None
