"""Relaxed accuracy: numbers within five per cent (Methani et al. 2020, as ChartQA uses it)."""

from __future__ import annotations

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.metric import Metric, mean_of

TOLERANCE = 0.05  # of the reference


def relaxed(item: Item, answer: str) -> float:
    """Return 1 where the answer is as good as a reference, else 0.

    Numbers may be off by `TOLERANCE`; where either is no number, or the reference is zero, both
    have to be the same text but for capitals.
    """
    return float(any(_is_close(answer.strip(), wanted.strip()) for wanted in item.answers))


def _is_close(answer: str, wanted: str) -> bool:
    found, target = _number(answer), _number(wanted)
    if found is not None and target:
        return abs(found - target) / abs(target) <= TOLERANCE
    return answer.lower() == wanted.lower()


def _number(text: str) -> float | None:
    """Return "12", "1e3" or "12%" as a number, a percentage as its share."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


RELAXED_ACCURACY = Metric(
    name="relaxed_accuracy",
    about="numbers within 5 % of the reference, other answers the same but for capitals",
    parts=mean_of(relaxed),
)
