"""Placeholder until the real module is written."""

from pathlib import Path
from typing import Any


def is_gguf(source: Any) -> bool:
    """Placeholder."""
    return str(source).endswith(".gguf")


def gguf_folder(text: Path, *, mmproj: Path | None = None, progress: Any = None) -> Path:
    """Placeholder."""
    raise NotImplementedError
