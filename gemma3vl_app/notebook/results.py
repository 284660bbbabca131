"""What tasks and folders return, to look at: pages of text, data by field, a folder's answers."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from pydantic import BaseModel

from gemma3vl_app.folders.items import BatchItem, BatchReport
from gemma3vl_app.notebook.shown import MUTED, Shown, folded, said, table
from gemma3vl_app.plain import plain
from gemma3vl_app.tasks.results import PageReading, Reading
from gemma3vl_app.wording import counted

_MOST_ROWS = 20  # of a folder; all of them are in its file


def shown_reading(reading: Reading) -> Shown:
    """Return the text of pages, each below its name."""
    pages = [shown_page(page) for page in reading.pages]
    return Shown("".join(page.html for page in pages), "\n\n".join(page.text for page in pages))


def shown_page(page: PageReading) -> Shown:
    """Return the text of a page below its name."""
    head = page.name if page.complete else f"{page.name} · cut at the limit"
    html = f'<div style="{MUTED}">{escape(head)}</div>{said(page.text)}'
    return Shown(f'<div style="margin:.3em 0">{html}</div>', plain(f"{head}\n{page.text}"))


def shown_data(value: Any) -> Shown:
    """Return data as a table of its fields, or as JSON where it has none."""
    data = _data(value)
    if not isinstance(data, dict):
        return Shown(said(_text(data)), plain(_text(data)))
    rows: list[tuple[str, ...]] = [(str(name), _field(each)) for name, each in data.items()]
    return Shown(table(rows, numbers=False), plain(_text(data)))


def shown_report(report: BatchReport) -> Shown:
    """Return how a folder went: what came of it, what failed and why, and the first answers."""
    head = _head(report)
    failed = [(item.file, item.error or "") for item in report.failed[:_MOST_ROWS]]
    answered = [item for item in report.items if not item.failed]
    rows = [(item.file, _answer_of(item)) for item in answered[:_MOST_ROWS]]
    more = len(answered) - len(rows)
    last = [f"… and {more:,} more"] if more else []
    html = [f"<div><b>{escape(head)}</b></div>", table([*rows], numbers=False)]
    html += [f'<div style="{MUTED}">{line}</div>' for line in last]
    if failed:
        html.append(folded(_failures(report), table([*failed], numbers=False)))
    lines = [head, *(f"{file}: {text}" for file, text in (*rows, *failed)), *last]
    return Shown("".join(html), plain("\n".join(lines)))


def _head(report: BatchReport) -> str:
    earlier = f", {report.earlier:,} of them in earlier runs" if report.earlier else ""
    parts = [counted(len(report.items), "picture"), f"{report.done:,} answered{earlier}"]
    parts += [f"{len(report.failed):,} failed"] if report.failed else []
    parts += [f"{counted(report.skipped, 'file')} skipped"] if report.skipped else []
    parts.append(f"{report.seconds:.1f} s")
    parts += [f"written to {report.out}"] if report.out else []
    return " · ".join(parts)


def _failures(report: BatchReport) -> str:
    shown = min(len(report.failed), _MOST_ROWS)
    return "What failed" + (f", the first {shown}" if shown < len(report.failed) else "")


def _answer_of(item: BatchItem) -> str:
    return item.text if item.value is None else _text(_data(item.value))


def _data(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _field(data: Any) -> str:
    """Return a field's value; of a list, each on a line."""
    return "\n".join(map(_text, data)) if isinstance(data, list) else _text(data)


def _text(data: Any) -> str:
    return data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, default=str)
