"""What becomes of each picture: its answer, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma3vl_app.generation import FinishReason, Usage


@dataclass(frozen=True, kw_only=True)
class BatchItem:
    """One picture: `file` is its name below the folder, with slashes.

    `text` is the answer; where a schema was asked for, `value` is it as data instead, and `text`
    is only there where it could not be read. `error` says what failed, None where nothing did.
    `size_bytes` is the file's size, None where there is no file. `usage` counts no cached tokens:
    those depend on what ran before.
    """

    file: str
    text: str = ""
    value: Any = field(default=None, hash=False)
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    error: str | None = None
    size_bytes: int | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return self.error is not None


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """All pictures in order, those of earlier runs included, and where the answers were written.

    `skipped` counts files that are no pictures, `earlier` the pictures that were done before this
    run; `seconds` is how long this run took.
    """

    items: tuple[BatchItem, ...]
    out: Path | None = None
    skipped: int = 0
    earlier: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> tuple[BatchItem, ...]:
        """The pictures without an answer, each with its reason."""
        return tuple(item for item in self.items if item.failed)

    @property
    def done(self) -> int:
        """How many pictures have an answer."""
        return len(self.items) - len(self.failed)


def to_line(item: BatchItem, *, with_schema: bool) -> dict[str, Any]:
    """Return an item as JSON-ready data, as it stands in a line of the output."""
    line: dict[str, Any] = {"file": item.file, "bytes": item.size_bytes}
    if item.error is not None:
        line["error"] = item.error
    if item.finish_reason is not None:  # the model did answer
        if with_schema and not item.failed:
            line["value"] = item.value
        else:
            line["text"] = item.text
        line["finish_reason"] = item.finish_reason
        line["usage"] = {
            "prompt_tokens": item.usage.prompt_tokens,
            "image_tokens": item.usage.image_tokens,
            "completion_tokens": item.usage.completion_tokens,
        }
    return line


def from_line(line: Mapping[str, Any]) -> BatchItem:
    """Return the item that `to_line` wrote."""
    return BatchItem(
        file=line["file"],
        text=line.get("text", ""),
        value=line.get("value"),
        finish_reason=line.get("finish_reason"),
        usage=Usage(**line.get("usage", {})),
        error=line.get("error"),
        size_bytes=line.get("bytes"),
    )
