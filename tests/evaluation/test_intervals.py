"""Intervals: what they cover, that they repeat, and what they do not pretend to know."""

import numpy as np
import pytest

from gemma3vl_app.evaluation.intervals import difference, interval, standard_error, total
from gemma3vl_app.evaluation.metrics.metric import Part


def answers(right, wrong):
    return [Part(1.0)] * right + [Part(0.0)] * wrong


def test_the_same_seed_gives_the_same_interval():
    parts = [Part(number**0.5) for number in range(40)]
    assert interval(parts, 1) == interval(parts, 1) != interval(parts, 2)


def test_it_is_as_wide_as_the_normal_approximation_says():
    parts = answers(300, 100)
    spread = (0.75 * 0.25 / 400) ** 0.5
    low, high = interval(parts, 0)
    assert low == pytest.approx(0.75 - 1.96 * spread, abs=0.006)
    assert high == pytest.approx(0.75 + 1.96 * spread, abs=0.006)
    assert standard_error(parts, 0) == pytest.approx(spread, rel=0.06)


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    drawn = rng.random((80, 120)) < 0.7
    covered = 0
    for number, row in enumerate(drawn):
        low, high = interval([Part(float(right)) for right in row], number)
        covered += low <= 0.7 <= high
    assert 0.87 <= covered / len(drawn) <= 1.0


def test_where_all_items_scored_the_same_there_is_none():
    assert interval(answers(20, 0), 0) is None
    assert interval([], 0) is None
    assert total([]) == 0.0


def test_an_error_rate_weighs_texts_by_their_length():
    parts = [Part(10, 10), Part(0, 90)]
    assert total(parts) == 0.1
    low, high = interval(parts, 0)
    assert (low, high) == (0.0, 1.0)


def test_paired_differences_are_surer_than_apart():
    hard = answers(40, 40)
    better = [Part(1.0)] * 48 + [Part(0.0)] * 32
    gained, (low, high) = difference(hard, better, 0)
    assert gained == pytest.approx(0.1)
    assert 0 < low < 0.1 < high
    apart = [interval(side, 0) for side in (hard, better)]
    assert high - low < min(right - left for left, right in apart)


def test_two_runs_that_agree_on_every_item_differ_by_nothing():
    assert difference(answers(5, 5), answers(5, 5), 0) == (0.0, None)
