"""What a comparison of two models found, as plain values. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

Begins = Literal["nowhere", "picture features", "language model", "both"]


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One prediction: in which prompt, after which token, and what was likeliest in both models.

    `position` counts the tokens of prompt and answer from 0; `token` stands there, and what comes
    after it is predicted.
    """

    prompt: str
    position: int
    token: str
    in_answer: bool
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well predictions agree over some positions.

    Attributes:
        positions: how many were compared.
        max_difference: the largest difference of a logit, over the whole vocabulary.
        mean_kl, max_kl: KL(reference || found), in nats.
        decided: positions at which the reference's two best logits differ by more than a near tie.
        kept: how many of those have the same likeliest token.
        near_ties, near_ties_kept: the same for the others.
        worst: where KL is largest; None where nothing differs.
    """

    positions: int
    max_difference: float
    mean_kl: float
    max_kl: float
    decided: int
    kept: int
    near_ties: int
    near_ties_kept: int
    worst: Spot | None = None

    @property
    def top1(self) -> float | None:
        """The share of decided positions with the same likeliest token; None without any."""
        return self.kept / self.decided if self.decided else None


@dataclass(frozen=True, kw_only=True)
class PromptAgreement:
    """One prompt's: `features_error` is that of its pictures' features, None without pictures.

    The error is the relative L2 one of what the projector gives: |found - expected| / |expected|.
    """

    name: str
    crops: str
    pictures: int
    tokens: int
    agreement: Agreement
    features_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """How far the output of one part is from the reference's: relative L2 error over all prompts.

    `growth` is how many times as much as that of the part before; None for the first of a row.
    """

    name: str
    error: float
    growth: float | None = None


@dataclass(frozen=True, kw_only=True)
class WeightDifference:
    """A stored tensor that is not the same in both; `error` is relative, None of other shapes."""

    name: str
    error: float | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One of the two models: what was loaded, and how."""

    source: str
    name: str
    revision: str
    weights: str
    arithmetic: str


@dataclass(frozen=True, kw_only=True)
class Deep:
    """The layers in the order they compute, and the stored tensors that differ, largest first.

    `first` is the first part whose output differs, "" where none does. `unread` counts tensors that
    were not compared since one of the two is stored in fewer bits.
    """

    layers: tuple[LayerError, ...]
    first: str
    weights: tuple[WeightDifference, ...]
    unread: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Two models compared: `a` is the reference. `exceeded` is empty where all bounds hold."""

    a: Compared
    b: Compared
    prompts: tuple[PromptAgreement, ...]
    total: Agreement
    begins: Begins
    exceeded: tuple[str, ...]
    bounds: str
    notes: tuple[str, ...] = ()
    deep: Deep | None = None

    @property
    def differs(self) -> bool:
        """Whether a bound is exceeded, as `PathsVerification` says it."""
        return bool(self.exceeded)

    @property
    def within(self) -> bool:
        """Whether every bound holds."""
        return not self.exceeded

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-ready data; what is infinite is the text "Infinity"."""
        plain = {"within": self.within, **asdict(self)}
        plain["total"]["top1"] = self.total.top1
        for given, found in zip(self.prompts, plain["prompts"], strict=True):
            found["agreement"]["top1"] = given.agreement.top1
        return cast(dict[str, Any], strict(plain))


def strict(value: Any) -> Any:
    """Return plain data as JSON can say it, which has numbers for finite values only.

    Others become texts: a missing value could be taken for one that was not measured.
    """
    if isinstance(value, dict):
        return {name: strict(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [strict(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def joined(agreements: Sequence[Agreement]) -> Agreement:
    """Return the agreement over the positions of all of `agreements`."""
    positions = sum(each.positions for each in agreements)
    kl = sum(each.mean_kl * each.positions for each in agreements)
    worst = max(agreements, key=lambda each: each.max_kl, default=None)
    return Agreement(
        positions=positions,
        max_difference=max((each.max_difference for each in agreements), default=0.0),
        mean_kl=kl / positions if positions else 0.0,
        max_kl=max((each.max_kl for each in agreements), default=0.0),
        decided=sum(each.decided for each in agreements),
        kept=sum(each.kept for each in agreements),
        near_ties=sum(each.near_ties for each in agreements),
        near_ties_kept=sum(each.near_ties_kept for each in agreements),
        worst=worst.worst if worst else None,
    )
