"""What the shell offers for a model's name; looks at names only, so that Tab is quick."""

from __future__ import annotations

import re
from pathlib import Path

from gemma3vl_app import catalog

# Shells evaluate what they are offered: a file's name must not hold a command.
HARMLESS = re.compile(r"\w[\w.+@-]*", re.ASCII)


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    """Return names that begin so, each with what it is; nothing lets the shell offer files.

    Names of the catalog, hub ids once a slash is typed, and models that lie in this folder.
    """
    if "/" in incomplete:
        offered = [(entry.repo, entry.title) for entry in catalog.MODELS.values() if entry.repo]
    else:
        offered = [(entry.name, entry.title) for entry in catalog.MODELS.values()] + _models_here()
    return [each for each in offered if each[0].startswith(incomplete)]


def _models_here() -> list[tuple[str, str]]:
    try:
        paths = sorted(path for path in Path.cwd().iterdir() if HARMLESS.fullmatch(path.name))
        return [(path.name, kind) for path in paths if (kind := _kind(path))]
    except OSError:  # a folder that is gone, or may not be read
        return []


def _kind(path: Path) -> str:
    if path.suffix.lower() == ".gguf":
        return "GGUF file"
    return "folder" if (path / "config.json").is_file() else ""
