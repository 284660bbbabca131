"""How far a model may be from its reference, and where each bound comes from.

A difference is that of a logit; divergence is KL(reference || found) in nats. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gemma3vl_app.errors import VerificationError
from gemma3vl_app.faithfulness.results import Agreement

# Of tests/engine/reference.py: what floating-point sums in another order may make of fp32
SAME_DIFFERENCE = 1e-4
NEAR_TIE = 1e-3  # of the two best logits: closer than this, either may come out first


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The most that is allowed; None is not asked about.

    `max_difference` and `max_kl` hold at every position, `max_mean_kl` and `min_top1` over all of
    them; `min_top1` counts positions that are no near ties, from 0 to 1. `why` says for people
    where the figures come from.
    """

    max_difference: float | None = None
    max_kl: float | None = None
    max_mean_kl: float | None = None
    min_top1: float | None = None
    why: str = ""

    def __post_init__(self) -> None:
        for name in ("max_difference", "max_kl", "max_mean_kl"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise VerificationError(f"{name} is {value}; it must be 0 or more.")
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 1:
            raise VerificationError(f"min_top1 is {self.min_top1}; it must be from 0 to 1.")

    @property
    def are_given(self) -> bool:
        """Whether anything is asked about."""
        asked = (self.max_difference, self.max_kl, self.max_mean_kl, self.min_top1)
        return any(each is not None for each in asked)

    def exceeded(self, agreement: Agreement) -> tuple[str, ...]:
        """Return what is over its bound and by how much, one line each; nothing where all hold."""
        return tuple(self._exceeded(agreement))

    def _exceeded(self, found: Agreement) -> Iterator[str]:
        for name, value, most in (
            ("the largest difference of a logit", found.max_difference, self.max_difference),
            ("the largest KL divergence", found.max_kl, self.max_kl),
            ("the mean KL divergence", found.mean_kl, self.max_mean_kl),
        ):
            if most is not None and not value <= most:  # so that not-a-number is over, too
                told = most and math.isfinite(value)
                times = f", {value / most:,.3g} times as much" if told else ""
                yield f"{name} is {value:.3g}, over {most:g}{times}"
        if self.min_top1 is None:
            return
        if found.top1 is None:
            yield (
                f"top-1 agreement cannot be judged: at none of {found.positions} places one token "
                "is clearly the reference's likeliest"
            )
        elif not found.top1 >= self.min_top1:
            yield (
                f"top-1 agreement is {found.top1:.2%}, under {self.min_top1:.2%}: "
                f"{found.decided - found.kept} of {found.decided} likeliest tokens are others"
            )


SAME = Bounds(
    max_difference=SAME_DIFFERENCE,
    min_top1=1.0,
    why="the same numbers but for the order of sums, by the tolerances of tests/engine",
)


# What fewer bits may cost, by form of the weights. How often the likeliest token stays says more of
# how sure a model is than of its weights, so only the divergence is judged.
_OVER_A_TEXT = "fewer bits: two to three times what docs/performance.md measured over a text"
# What sums in another order make of fp32: tests/engine allow 1e-4 at the likeliest tokens of tiny
# models. Over the whole vocabulary of the demo, whose logits are larger, it is nearly that already.
_ROUNDING = Bounds(
    max_difference=10 * SAME_DIFFERENCE,
    min_top1=1.0,
    why="rounding of float32: ten times what tests/engine allow, since all tokens count here",
)
FORM_BOUNDS = {
    "fp32": _ROUNDING,
    "w16": _ROUNDING,
    "bf16": Bounds(max_mean_kl=0.02, why="rounding of bfloat16 in every layer"),
    "int8": Bounds(max_mean_kl=0.02, why=_OVER_A_TEXT),
    "int4": Bounds(max_mean_kl=0.5, why=_OVER_A_TEXT),
    "nf4": Bounds(max_mean_kl=0.5, why=_OVER_A_TEXT),
}

# Next to transformers' pass in the same form only the order of sums differs, so that these are much
# tighter: ten times what the built-in prompts gave on the tiny random checkpoint, whose sharpest
# form they are. There: 6e-5 for bf16, 2.4e-4 where weights of fewer bits meet rows in bfloat16, and
# differences of 3e-5 in float32, for which 1e-4 is what tests/engine allow.
_IN_FLOAT32 = Bounds(max_difference=10 * SAME_DIFFERENCE, why="order of sums in float32")
_IN_BFLOAT16 = Bounds(max_mean_kl=6e-4, why="order of sums in bfloat16")
_MIXED = Bounds(max_mean_kl=2.5e-3, why="products of few bits with rows in bfloat16")
# There 0.006: one path rounds rows to int8 (`loading.int4_vnni`), the other does not.
_ROWS_DIFFER = Bounds(max_mean_kl=3e-2, why="rows of 8 bits on one path and of 16 on the other")


def own_pass_bounds(weights: str, dtype: str, *, kernels: bool) -> Bounds:
    """Return how far a path may be from transformers' pass in the same form.

    `dtype` is that of the arithmetic. Without our `kernels`, torch multiplies few rows with 8 bits
    in bfloat16, and so it does with 4 bits (`int4`) in float32 in any case; in bfloat16 kernels of
    ours round rows to 8 bits for `int4`.
    """
    if dtype != "float32" and weights == "int4" and not kernels:
        return _ROWS_DIFFER
    if dtype != "float32":
        return _IN_BFLOAT16 if weights == "bf16" else _MIXED
    exact = weights in ("fp32", "w16") or (weights != "int4" and kernels)
    return _IN_FLOAT32 if exact else _MIXED
