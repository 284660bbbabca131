"""Two finished runs of the same items: is one better than chance would have it?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma3vl_app.errors import EvaluationError
from gemma3vl_app.evaluation.intervals import Interval, difference, total
from gemma3vl_app.evaluation.items import ALL
from gemma3vl_app.evaluation.metrics.metric import Metric, Part
from gemma3vl_app.evaluation.results import RESULTS, SCORED, VERSION_KEY
from gemma3vl_app.evaluation.suites import find_suite


@dataclass(frozen=True, kw_only=True)
class Change:
    """A metric of both runs over the items of a kind, and b - a with its 95 % interval."""

    metric: Metric
    kind: str
    a: float
    b: float
    gained: float
    interval: Interval | None
    items: int

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class Comparison:
    """Changes from run `a` to run `b`, by their models' names.

    `notes` say in which settings they differ: then these may be what the difference is of.
    """

    suite: str
    a: str
    b: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()


def compare(a: str | Path, b: str | Path, *, seed: int = 0) -> Comparison:
    """Compare the runs in two folders by the paired bootstrap, over the items of both.

    Raises `EvaluationError` where a folder holds no finished run, or they asked other things.
    """
    first, second = _read(Path(a)), _read(Path(b))
    for key in ("suite", "prompt", "free_prompt"):
        one, other = first.told.get(key, ""), second.told.get(key, "")
        if one != other:
            raise EvaluationError(
                f"The runs differ in their {key}: {one!r} and {other!r}. "
                "Compare two runs of the same suite."
            )
    if first.told["data"]["sha256"] != second.told["data"]["sha256"]:
        raise EvaluationError(
            "The runs asked about different data. Compare two runs over the same data."
        )
    shared = [id for id in first.items if id in second.items]
    if not shared:
        raise EvaluationError("No item is in both runs. Run them with the same limit and seed.")
    kinds = sorted({kind for id in shared for kind in first.items[id]["kinds"]})
    groups = {ALL: shared}
    if len(kinds) > 1:
        groups |= {k: [id for id in shared if k in first.items[id]["kinds"]] for k in kinds}
    return Comparison(
        suite=first.told["suite"],
        a=_name(first, Path(a)),
        b=_name(second, Path(b)),
        changes=tuple(_changes(first, second, groups, seed)),
        notes=tuple(_differences(first.told["settings"], second.told["settings"])),
    )


@dataclass(frozen=True)
class _Run:
    """What was written of a finished run: `results.json`, and the lines of `scored.jsonl`."""

    told: dict[str, Any]
    items: dict[str, dict[str, Any]]

    def parts(self, metric: Metric, ids: list[str]) -> list[Part]:
        return [Part(*self.items[id]["parts"][metric.name]) for id in ids]

    def counts(self, metric: Metric, id: str) -> bool:
        """Whether a metric is about an item; one that came later is about none of older runs."""
        return Part(*self.items[id]["parts"].get(metric.name, (0.0, 0.0))).counts


def _read(folder: Path) -> _Run:
    try:
        told = json.loads((folder / RESULTS).read_bytes())
        told[VERSION_KEY], told["suite"], told["prompt"], told["data"]["sha256"]
        told["settings"] = dict(told["settings"])
        with (folder / SCORED).open("rb") as lines:
            scored = [json.loads(line) for line in lines]
        return _Run(told, {line["id"]: line for line in scored})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvaluationError(
            f"The folder '{folder.name}' holds no finished run: it needs {RESULTS} and {SCORED} "
            "as an evaluation writes them."
        ) from error


def _differences(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*a, *b]):
        if a.get(key) != b.get(key):
            yield f"{key} is {_shown(a.get(key))} in a, {_shown(b.get(key))} in b"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _name(run: _Run, folder: Path) -> str:
    model = run.told.get("model", {})
    words = [model.get("name", ""), model.get("weights", ""), f"({folder.name})"]
    return " ".join(str(word) for word in words if word)


def _changes(a: _Run, b: _Run, groups: dict[str, list[str]], seed: int) -> Iterator[Change]:
    """Yield the change of each metric over the items of each kind that it is about in both."""
    for kind, ids in groups.items():
        for metric in find_suite(a.told["suite"]).metrics:
            counted = [id for id in ids if a.counts(metric, id) and b.counts(metric, id)]
            if counted:
                parts = a.parts(metric, counted), b.parts(metric, counted)
                yield _change(metric, kind, *parts, seed)


def _change(metric: Metric, kind: str, a: list[Part], b: list[Part], seed: int) -> Change:
    gained, interval = difference(a, b, seed)
    return Change(
        metric=metric,
        kind=kind,
        a=total(a),
        b=total(b),
        gained=gained,
        interval=interval,
        items=len(a),
    )
