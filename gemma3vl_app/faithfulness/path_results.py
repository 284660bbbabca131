"""How far a model in other forms and on faster paths is from the reference, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

from gemma3vl_app.faithfulness.results import Agreement, Compared, strict


@dataclass(frozen=True, kw_only=True)
class PathResult:
    """One form of the weights, on one path, with pictures in one crop mode.

    `weights` is the form, `path` what was done with it (`paths.PATHS`); `features_error` is the
    relative L2 error of what the projector gives, None where the path encodes no pictures itself.
    `agreement` is with the reference in fp32, `own_pass` with what transformers computes in the
    same form. `agreement` is None where the form is not for this machine, where the path did not
    come about, and where it failed, which counts as over the bound; `note` says why, or what else
    is to be known. `bounds` and `own_bounds` say where those come from, `exceeded` what is over.
    """

    weights: str
    path: str
    crops: str
    agreement: Agreement | None
    own_pass: Agreement | None = None
    features_error: float | None = None
    exceeded: tuple[str, ...] = ()
    bounds: str = ""
    own_bounds: str = ""
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether there is nothing to judge since something went wrong."""
        return self.agreement is None and bool(self.exceeded)


def not_here(weights: str, why: str) -> PathResult:
    """Return the result of a form that is not made for this machine, which breaks no bound."""
    return PathResult(weights=weights, path="loading", crops="", agreement=None, note=why)


@dataclass(frozen=True, kw_only=True)
class PathsVerification:
    """A model on all paths of this machine; `chosen` is the form that loading chooses by itself."""

    reference: Compared
    chosen: str
    results: tuple[PathResult, ...]

    @property
    def exceeded(self) -> tuple[str, ...]:
        """What is over its bound, with its form and path, one line each.

        Where nothing could be compared there is a line, too: nothing was found to be the same.
        """
        over = tuple(
            f"{each.weights}, {each.path}{f', crops {each.crops}' if each.crops else ''}: {line}"
            for each in self.results
            for line in each.exceeded
        )
        if not over and not self.compared:
            return ("none of these forms could be compared on this machine",)
        return over

    @property
    def compared(self) -> bool:
        """Whether anything was compared at all."""
        return any(each.agreement is not None for each in self.results)

    @property
    def differs(self) -> bool:
        """Whether something that was compared is over its bound; a failure alone is none."""
        return any(each.exceeded and not each.failed for each in self.results)

    @property
    def within(self) -> bool:
        """Whether every bound of every path holds."""
        return not self.exceeded

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-ready data."""
        plain = {"within": self.within, **asdict(self)}
        for given, found in zip(self.results, plain["results"], strict=True):
            for name, agreement in (("agreement", given.agreement), ("own_pass", given.own_pass)):
                if agreement is not None:
                    found[name]["top1"] = agreement.top1
        return cast(dict[str, Any], strict(plain))
