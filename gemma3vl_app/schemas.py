"""JSON schemas that answers are held to: read from a file, and closed against endless answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma3vl_app.errors import ConversationError

LARGEST_SCHEMA_BYTES = 1 << 20
_DATA = {"const", "enum", "default", "examples"}
_SCHEMAS_BY_NAME = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}


def closed(schema: Any) -> Any:
    """Return a JSON schema whose objects hold what they name and nothing else.

    JSON Schema lets an object have more properties than it lists, and pydantic leaves that unsaid;
    a model would fill them in without end. An object that says what else it may hold keeps that.
    """
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _closed_value(key, value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        inner.setdefault("additionalProperties", False)
    return inner


def _closed_value(keyword: str, value: Any) -> Any:
    """Return a keyword's value, closed where it holds schemas, and not where it holds data."""
    if keyword in _DATA:
        return value
    if keyword in _SCHEMAS_BY_NAME and isinstance(value, dict):
        return {name: closed(each) for name, each in value.items()}  # a name is no keyword
    return closed(value)


def as_json_schema(schema: Any) -> dict[str, Any]:
    """Return a JSON schema as plain data; a pydantic model's is closed, as backends take it.

    Raises `ConversationError` for anything else.
    """
    if isinstance(schema, Mapping):
        return dict(schema)
    if hasattr(schema, "model_json_schema"):
        return dict(closed(schema.model_json_schema()))
    raise ConversationError("schema must be a JSON schema (a dict) or a pydantic model.")


def parse_json(text: str | bytes) -> Any:
    """Return parsed JSON; raises `ValueError` with the reason where it is none.

    An object that names a key twice is refused: readers disagree about which of the values counts.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{where}: {error.msg[:1].lower()}{error.msg[1:]}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object in it has the key {twice[:40]!r} twice")
    return found


def read_schema(path: str | Path) -> dict[str, Any]:
    """Return the JSON schema of a file; raises `ConversationError` where it is none."""
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST_SCHEMA_BYTES + 1)
        schema = parse_json(data) if len(data) <= LARGEST_SCHEMA_BYTES else None
    except OSError as error:
        raise ConversationError(
            f"The schema {file.name!r} cannot be read ({error.strerror or 'no such file'}). "
            "Give a JSON file."
        ) from error
    except ValueError as error:
        raise ConversationError(
            f"The schema {file.name!r} is not valid JSON ({error}). Correct the file and try again."
        ) from error
    if not isinstance(schema, dict):
        raise ConversationError(
            f"The schema {file.name!r} is no JSON schema: a JSON object of at most 1 MiB is needed."
        )
    return schema
