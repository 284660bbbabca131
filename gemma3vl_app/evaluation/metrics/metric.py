"""What a metric is: a sum over items divided by a sum of weights.

An accuracy has weight 1 for each item; an error rate divides all errors by all characters or words,
so that long texts count more. Intervals and comparisons need no more than these parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gemma3vl_app.evaluation.items import Item


@dataclass(frozen=True)
class Part:
    """What one item adds: the metric is the sum of values by the sum of weights.

    A part without weight says that the metric is not about its item.
    """

    value: float
    weight: float = 1.0

    @property
    def score(self) -> float:
        """The metric of this item alone; 0 where it has no weight."""
        return self.value / self.weight if self.counts else 0.0

    @property
    def counts(self) -> bool:
        """Whether the metric is about this item."""
        return self.weight > 0


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: `parts` takes all items with their answers, since some look at all of them at once.

    `about` says in a line what it is and where it comes from. `percent` ones are shares, shown in
    per cent. `weighted` ones count an item by the weight of its part, others each item once.
    """

    name: str
    about: str
    parts: Callable[[Sequence[Item], Sequence[str]], Sequence[Part]]
    higher_is_better: bool = True
    percent: bool = True
    weighted: bool = False

    def score_all(self, items: Sequence[Item], answers: Sequence[str | None]) -> tuple[Part, ...]:
        """Return each item's part; None, an item without an answer, is as wrong as can be."""
        parts = self.parts(items, [answer or "" for answer in answers])
        return tuple(
            self._worst(part) if answer is None else part
            for part, answer in zip(parts, answers, strict=True)
        )

    def _worst(self, part: Part) -> Part:
        return Part(0.0 if self.higher_is_better else part.weight, part.weight)

    def rank(self, score: float) -> float:
        """Return a number that is smaller for worse scores."""
        return score if self.higher_is_better else -score

    def is_perfect(self, score: float) -> bool:
        """Whether nothing could be better; a score without an upper end never is."""
        return score == (1.0 if self.higher_is_better else 0.0) and self.percent

    def show(self, value: float) -> str:
        """Return a value for people: "78.3%", or "1.024"."""
        return f"{value:.1%}" if self.percent else f"{value:.3f}"


def mean_of(
    score: Callable[[Item, str], float],
) -> Callable[[Sequence[Item], Sequence[str]], Sequence[Part]]:
    """Return the parts of a metric that is the mean of each item's own score."""

    def parts(items: Sequence[Item], answers: Sequence[str]) -> list[Part]:
        return [Part(score(i, answer)) for i, answer in zip(items, answers, strict=True)]

    return parts
