"""The models this package knows by name: what each is called and what it can do, for people.

Pure data; knows nothing of files, tensors or memory.
"""

from __future__ import annotations

from dataclasses import dataclass


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
