"""`Check`: one thing that was looked at; and looking, so that one failure never stops the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gemma3vl_app.errors import Gemma3VLError

State = Literal["good", "warning", "broken"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One line of the doctor: what was found, and (where not good) the command to type next."""

    section: str
    name: str
    state: State
    message: str
    next_step: str = ""


@dataclass(frozen=True)
class Look:
    """A look to be taken at something; `find` may return several checks, or none."""

    section: str
    name: str
    find: Callable[[], Iterable[Check]]


def take(looks: Sequence[Look]) -> list[Check]:
    """Return what all looks find; one that fails becomes a broken line and the others go on."""
    found: list[Check] = []
    for look in looks:
        try:
            found += list(look.find())
        except Gemma3VLError as error:
            found.append(Check(look.section, look.name, "broken", str(error)))
        except Exception as error:
            logger.debug("The check of %s failed.", look.name, exc_info=True)
            message = f"This check failed inside ({type(error).__name__}); the others went on."
            again = "gemma3vl --debug doctor"
            found.append(Check(look.section, look.name, "broken", message, again))
    return found


def gib(size_bytes: int) -> str:
    """Return a size for people: "8.6 GiB", or MiB where that would read 0.0."""
    if size_bytes >= 1 << 29:
        return f"{size_bytes / (1 << 30):,.1f} GiB"
    return f"{size_bytes / (1 << 20):,.0f} MiB"


def shown_path(path: Path) -> str:
    """Return a path for people, with the home folder as ~."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):  # elsewhere, or nobody's home
        return str(path)
