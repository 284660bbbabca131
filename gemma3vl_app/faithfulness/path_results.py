"""How far a model in other forms and on faster paths is from the reference, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gemma3vl_app.faithfulness.results import Agreement, Compared


@dataclass(frozen=True, kw_only=True)
class PathResult:
    """One form of the weights, on one path, with pictures in one crop mode.

    `weights` is the form, `path` what was done with it (`paths.PATHS`); `features_error` is the
    relative L2 error of what the projector gives. `agreement` is None where the form or path is not
    for this machine; `note` says why, or what else is to be known. `bounds` says where those come
    from, `exceeded` what is over them.
    """

    weights: str
    path: str
    crops: str
    agreement: Agreement | None
    features_error: float | None = None
    exceeded: tuple[str, ...] = ()
    bounds: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PathsVerification:
    """A model on all paths of this machine; `chosen` is the form that loading chooses by itself."""

    reference: Compared
    chosen: str
    results: tuple[PathResult, ...]

    @property
    def exceeded(self) -> tuple[str, ...]:
        """What is over its bound, with its form and path, one line each."""
        return tuple(
            f"{each.weights}, {each.path}, crops {each.crops}: {line}"
            for each in self.results
            for line in each.exceeded
        )

    @property
    def within(self) -> bool:
        """Whether every bound of every path holds."""
        return not self.exceeded

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-ready data."""
        plain = {"within": self.within, **asdict(self)}
        for given, found in zip(self.results, plain["results"], strict=True):
            if given.agreement is not None:
                found["agreement"]["top1"] = given.agreement.top1
        return plain
