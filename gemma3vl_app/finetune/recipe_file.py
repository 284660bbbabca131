"""A recipe's YAML read into plain values, by the rules of YAML 1.2's core schema.

PyYAML's own rules are older: 5e-5 would be a word there, and `no` a truth value.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gemma3vl_app.errors import RecipeError

MAX_BYTES = 1 << 20
_NULLS = {"", "~", "null", "Null", "NULL"}
_TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file; raises `RecipeError` with the line at fault."""
    name = path.name
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{name} is too large to be a recipe.")
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        values = {} if node is None else _value(node, set())
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise RecipeError(f"{name} is no YAML{line}: {error.problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{name} is no YAML in UTF-8. Write lines of `key: value`.") from error
    except OSError as error:
        raise RecipeError(f"{name} cannot be read ({error.strerror}).") from error
    except _RefusedError as error:
        raise RecipeError(f"{name} {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{name} is no recipe: write it as lines of `key: value`.")
    return values


def read_scalar(text: str) -> Any:
    """Return a number, a truth value, None or, for all else, the text itself."""
    if text in _NULLS:
        return None
    if text in _TRUTHS:
        return _TRUTHS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


class _RefusedError(Exception):
    """What YAML allows and a recipe does not; its text goes on after the file's name."""


def _value(node: yaml.Node, seen: set[int]) -> Any:
    """Return a node's value; `seen` are the nodes already met, which only aliases repeat."""
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise _RefusedError(f"refers back to an anchor above line {line}. Write the value out.")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in found:  # YAML's readers silently keep the last
                raise _RefusedError(f"states {key[:80]!r} twice, again in line {line}. Keep one.")
            found[key] = _value(value_node, seen)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, seen) for each in node.value]
    return node.value if node.style is not None else read_scalar(node.value)
