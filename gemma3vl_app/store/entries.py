"""What a list of conversations shows, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A stored conversation: times in UTC, `turns` of all branches, different `pictures`.

    `title` is "" as long as nothing was written and no title given.
    """

    id: str
    title: str
    created: datetime
    changed: datetime
    pinned: bool
    turns: int
    pictures: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """A conversation that a search found, and where: `snippet[start:end]` is what matched.

    `snippet` is one line of plain text, never markup.
    """

    entry: Entry
    snippet: str
    start: int
    end: int
