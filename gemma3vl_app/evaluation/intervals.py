"""Intervals by the bootstrap: how far a score may be off because these items were asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gemma3vl_app.evaluation.metrics.metric import Part

RESAMPLES = 2_000
LEVEL = 0.95
_AT_ONCE = 1 << 20  # drawn positions in memory

Interval = tuple[float, float]
Totals = NDArray[np.float64]


def total(parts: Sequence[Part]) -> float:
    """Return the metric: the sum of values by the sum of weights; 0 where there is no weight."""
    weight = sum(part.weight for part in parts)
    return sum(part.value for part in parts) / weight if weight else 0.0


def interval(parts: Sequence[Part], seed: int) -> Interval | None:
    """Return the 95 % percentile interval of `total` (Efron 1979).

    None where all items scored the same: from them the bootstrap learns nothing about how scores
    vary, and would call itself certain.
    """
    if len({part.score for part in parts}) < 2:
        return None
    return _quantiles(_totals(parts, seed))


def standard_error(parts: Sequence[Part], seed: int) -> float:
    """Return the standard deviation of `total` over resamples; 0 where all scored the same."""
    return float(_totals(parts, seed).std(ddof=1)) if parts else 0.0


def difference(a: Sequence[Part], b: Sequence[Part], seed: int) -> tuple[float, Interval | None]:
    """Return `total` of b minus that of a with its interval; the same items in the same order.

    Both are drawn together (paired), so that hard items are hard for both.
    """
    gained = total(b) - total(a)
    if len({other.score - one.score for one, other in zip(a, b, strict=True)}) < 2:
        return gained, None  # as in `interval`
    gains = [_ratio(sums[1]) - _ratio(sums[0]) for sums in _resampled([a, b], seed)]
    return gained, _quantiles(np.concatenate(gains))


def _totals(parts: Sequence[Part], seed: int) -> Totals:
    """Return `total` of each resample, (RESAMPLES,)."""
    return np.concatenate([_ratio(sums[0]) for sums in _resampled([parts], seed)])


def _resampled(sides: Sequence[Sequence[Part]], seed: int) -> Iterator[Totals]:
    """Yield sums of values and of weights, (sides, 2, resamples), a few resamples at a time.

    All sides are drawn together. The same seed draws the same.
    """
    rng = np.random.default_rng(seed)
    listed = [[[p.value for p in side], [p.weight for p in side]] for side in sides]
    table = np.array(listed, dtype=np.float64)
    count = table.shape[-1]
    left = RESAMPLES
    while left:
        rows = min(left, max(1, _AT_ONCE // count))
        left -= rows
        yield table[:, :, rng.integers(0, count, size=(rows, count))].sum(axis=-1)


def _ratio(sums: Totals) -> Totals:
    """Return values by weights; sums is (2, resamples)."""
    values, weights = sums
    ratio: Totals = np.zeros_like(values)
    np.divide(values, weights, out=ratio, where=weights > 0)
    return ratio


def _quantiles(totals: Totals) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(totals, [tail, 1 - tail])
    return float(low), float(high)
