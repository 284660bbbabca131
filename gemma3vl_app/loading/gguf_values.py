"""Settings of an opened GGUF file, each of the type that is expected, or an error that names it."""

from __future__ import annotations

from typing import Any

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.gguf_header import SHOWN, Reader

MAX_COUNT = 1 << 31  # of anything that a model has many of


def value(reader: Reader, key: str) -> Any:
    """Return a setting; raises `LoadError` where the file lacks it."""
    if key not in reader.fields:
        raise LoadError(f"The GGUF file lacks {key!r}; it is not a complete Gemma 3 model.")
    return reader.fields[key].contents()


def optional(reader: Reader, key: str) -> Any:
    """Return a setting, or None where the file lacks it."""
    return value(reader, key) if key in reader.fields else None


def count(reader: Reader, key: str) -> int:
    """Return a whole number from 1 up; raises `LoadError` for anything else."""
    found = value(reader, key)
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found < MAX_COUNT:
        raise _no_number(key, found)
    return found


def number(reader: Reader, key: str) -> float:
    """Return a finite number from 0 up; raises `LoadError` for anything else."""
    found = value(reader, key)
    if not isinstance(found, int | float) or not 0 <= found < float("inf"):
        raise _no_number(key, found)
    return float(found)


def _no_number(key: str, found: object) -> LoadError:
    shown = "a list" if isinstance(found, list) else repr(found)[:SHOWN]
    return LoadError(
        f"The GGUF file's {key!r} is {shown}, which no Gemma 3 has. Take another conversion."
    )
