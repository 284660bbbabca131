"""What came out of an evaluation: scores with their intervals, and every answer with its own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gemma3vl_app.atomic_file import atomic_file
from gemma3vl_app.errors import EvaluationError
from gemma3vl_app.evaluation.intervals import LEVEL, RESAMPLES, Interval, interval, total
from gemma3vl_app.evaluation.items import ALL, Item
from gemma3vl_app.evaluation.metrics.metric import Metric, Part

RESULTS, SCORED = "results.json", "scored.jsonl"
VERSION_KEY, VERSION = "gemma3vl_evaluation", 1


@dataclass(frozen=True)
class Case:
    """One item and what became of it: the model's text or the error, and a part a metric.

    `logprobs` are the letters' log-probabilities, where these were asked for in place of a text.
    """

    item: Item
    text: str
    error: str | None
    parts: Mapping[str, Part] = field(hash=False)
    logprobs: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def said(self) -> str:
        """The answer for people: the text, or the letters with their probabilities."""
        if not self.logprobs:
            return self.text
        ordered = sorted(self.logprobs.items(), key=lambda each: -each[1])
        shares = [(letter, math.exp(min(0.0, logprob))) for letter, logprob in ordered]
        return ", ".join(f"{letter} {share:.0%}" for letter, share in shares)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric over the items of a kind, with its 95 % interval where there is one."""

    metric: str
    kind: str
    value: float
    interval: Interval | None
    items: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A finished run. `about` is what was asked of whom, see docs/evaluation.md for its fields.

    `folder` is where it was written, None where it was not.
    """

    suite: str
    metrics: tuple[Metric, ...]
    scores: tuple[Score, ...]
    cases: tuple[Case, ...]
    about: Mapping[str, Any] = field(hash=False)
    folder: Path | None = None

    @property
    def score(self) -> Score:
        """The first metric over all items."""
        return self.scores[0]

    @property
    def failed(self) -> tuple[Case, ...]:
        """Items without an answer, each with its reason; they count as wrong."""
        return tuple(case for case in self.cases if case.error is not None)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds in the order of the table, all together first."""
        return tuple(dict.fromkeys(score.kind for score in self.scores))

    def worst(self, count: int) -> list[Case]:
        """Return the worst answers by the first metric that are not perfect, the kinds in turns."""
        metric = self.metrics[0]
        answered = [case for case in self.cases if case.error is None]
        ordered = sorted(answered, key=lambda case: metric.rank(case.parts[metric.name].score))
        by_kind: dict[str, list[Case]] = {}
        for case in ordered:
            if not metric.is_perfect(case.parts[metric.name].score):
                by_kind.setdefault("".join(case.item.kinds[:1]), []).append(case)
        in_turns = [case for turn in zip_longest(*by_kind.values()) for case in turn if case]
        return in_turns[:count]


def scores_of(metrics: Sequence[Metric], cases: Sequence[Case], seed: int) -> tuple[Score, ...]:
    """Return each metric over all items, then over each kind in the order of its name.

    A metric is left out of kinds that it is about no item of.
    """
    kinds = sorted({kind for case in cases for kind in case.item.kinds})
    groups = [(ALL, list(cases))]
    if len(kinds) > 1:
        groups += [(kind, [case for case in cases if kind in case.item.kinds]) for kind in kinds]
    counted = (
        (metric, kind, [case for case in group if case.parts[metric.name].counts])
        for kind, group in groups
        for metric in metrics
    )
    return tuple(_score(*each, seed) for each in counted if each[-1])


def _score(metric: Metric, kind: str, cases: Sequence[Case], seed: int) -> Score:
    parts = [case.parts[metric.name] for case in cases]
    return Score(
        metric=metric.name,
        kind=kind,
        value=total(parts),
        interval=interval(parts, seed),
        items=len(cases),
        failed=sum(case.error is not None for case in cases),
    )


# --- files ----------------------------------------------------------------------------------------


def write_results(evaluation: Evaluation, folder: Path) -> None:
    """Write `results.json`, and `scored.jsonl` with a line for each item."""
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in _scored(evaluation))
    write_text(folder / SCORED, "".join(lines))
    told = json.dumps(to_dict(evaluation), indent=1, ensure_ascii=False)
    write_text(folder / RESULTS, told + "\n")


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Return what `results.json` holds: everything but the single items."""
    return {
        VERSION_KEY: VERSION,
        "suite": evaluation.suite,
        "metrics": {
            metric.name: {"about": metric.about, "higher_is_better": metric.higher_is_better}
            for metric in evaluation.metrics
        },
        "scores": [
            {
                "kind": score.kind,
                "metric": score.metric,
                "value": score.value,
                "interval": score.interval and list(score.interval),
                "items": score.items,
                "failed": score.failed,
            }
            for score in evaluation.scores
        ],
        "interval": {"level": LEVEL, "method": "percentile bootstrap", "resamples": RESAMPLES},
        **evaluation.about,
    }


def _scored(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for case in evaluation.cases:
        yield {
            "id": case.item.id,
            "kinds": case.item.kinds,
            "question": case.item.question,
            "options": case.item.options,
            "answers": case.item.answers,
            "text": case.text,
            "error": case.error,
            "parts": {name: [part.value, part.weight] for name, part in case.parts.items()},
        }


def delete_results(folder: Path) -> None:
    """Delete what `write_results` wrote of an earlier run."""
    for name in (RESULTS, SCORED):
        with telling(folder / name):
            (folder / name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; raises `EvaluationError` with the system's words."""
    with telling(path), atomic_file(path) as file:
        file.write(text.encode("utf-8", "replace"))


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Raise `EvaluationError` where the system does not let us write `path`."""
    try:
        yield
    except OSError as error:
        raise EvaluationError(
            f"'{path.name}' cannot be written ({error.strerror or type(error).__name__}). The "
            "answers are kept; run it again when that is mended."
        ) from error
