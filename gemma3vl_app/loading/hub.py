"""Placeholder until the real module is written."""

from pathlib import Path
from typing import Any


def hub_folder(repo: str, *, revision: str | None = None, progress: Any = None) -> Path:
    """Placeholder."""
    raise NotImplementedError


def hub_revision(folder: Path) -> str | None:
    """Placeholder."""
    return None
