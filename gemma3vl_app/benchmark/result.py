"""One measured figure beside its baseline and its target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measurement: `value` against `baseline`, both in `unit`, and what their ratio should be.

    `bound` says whether `ratio` = value / baseline must be "at most" or "at least" `target`, or
    "within" it: neither of the two more than `target` times the other.
    `details` holds further figures, with their units in their names.
    """

    name: str
    value: float
    baseline: float
    unit: str
    baseline_name: str
    bound: Literal["at most", "at least", "within"]
    target: float
    details: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Value over baseline."""
        return self.value / self.baseline

    def met(self, share: float = 1.0) -> bool:
        """Tell whether the target is reached, or at least `share` of it."""
        if self.bound == "at least":
            return self.ratio >= self.target * share
        if self.bound == "within":  # not a speed: the same on every machine, so no share of it
            return 1 / self.target <= self.ratio <= self.target
        return self.ratio <= self.target / share
