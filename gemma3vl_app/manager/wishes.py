"""What makes two wishes for a model the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Key = tuple[Any, ...]


def key_of(source: str | Path, options: Mapping[str, Any]) -> Key:
    """Return what makes two wishes the same: the source, and all options but who hears of it."""
    path = Path(source).expanduser()
    place = str(path.resolve()) if path.exists() else str(source)
    wishes = {name: value for name, value in options.items() if name != "progress"}
    given = [name for name in sorted(wishes) if wishes[name] is not None]
    return place, *((name, _frozen(wishes[name])) for name in given)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _frozen(each)) for key, each in value.items()))
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(_frozen(each) for each in value)
    return str(value) if isinstance(value, Path) else value
