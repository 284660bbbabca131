"""Differences, divergence and agreement are what their formulas say."""

import math

import pytest
import torch

from gemma3vl_app.faithfulness.bounds import SAME, Bounds
from gemma3vl_app.faithfulness.measuring import (
    Place,
    RelativeError,
    agreement,
    compare_answer,
    compare_logits,
)
from gemma3vl_app.faithfulness.results import Agreement, joined, strict
from gemma3vl_app.generation import Alternative, Token


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The definition, in float64."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("distance", [1e-4, 1e-2, 1.0, 20.0])
def test_divergence_is_that_of_the_definition(distance):
    made = torch.Generator().manual_seed(0)
    p = torch.randn(20, 5000, generator=made)
    q = p + distance * torch.randn(20, 5000, generator=made)
    found = torch.tensor(compare_logits(p, q).kl, dtype=torch.float64)
    assert torch.allclose(found, kl(p, q), rtol=1e-3, atol=1e-13)


def test_a_shift_of_all_logits_is_a_difference_but_no_divergence():
    p = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    rows = compare_logits(p, p + 100)
    assert rows.differences == pytest.approx([100] * 3, rel=1e-4)
    assert max(rows.kl) < 1e-9
    assert rows.expected == rows.found


def test_an_answer_is_compared_up_to_its_first_other_token():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 4.0, 1.0], [5.0, 0.0, 0.0]])
    exact = logits.log_softmax(-1)
    tokens = [
        Token(0, "a", float(exact[0, 0]), (Alternative(1, "b", float(exact[0, 1])),)),
        Token(2, "c", -0.5, (Alternative(1, "b", float(exact[1, 1]) - 1),)),
        Token(0, "a", float(exact[2, 0])),
    ]
    rows = compare_answer(logits, tokens, [0, 1, 0])
    assert (rows.expected, rows.found) == ([0, 1], [0, 2])
    assert rows.differences[0] == pytest.approx(0, abs=1e-6)
    assert rows.kl[0] == pytest.approx(0, abs=1e-9)
    assert rows.differences[1] > 0.9


def test_what_is_known_of_a_few_tokens_never_exceeds_the_whole_divergence():
    made = torch.Generator().manual_seed(0)
    for _ in range(20):
        p, q = torch.randn(1, 50, generator=made), torch.randn(1, 50, generator=made)
        values, ids = q.log_softmax(-1).topk(5)
        alternatives = [
            Alternative(id, "", value)
            for id, value in zip(ids[0].tolist(), values[0].tolist(), strict=True)
        ]
        token = Token(alternatives[0].id, "", alternatives[0].logprob, tuple(alternatives))
        assert 0 < compare_answer(p, [token], [token.id]).kl[0] <= float(kl(p, q)) + 1e-9


@pytest.mark.parametrize("logprob", [math.nan, math.inf, -math.inf, None])
def test_an_answer_that_is_no_number_is_infinitely_far(logprob):
    logits = torch.tensor([[3.0, 1.0, 0.0]])
    rows = compare_answer(logits, [Token(0, "a", logprob)], [0])
    assert rows.differences == rows.kl == [math.inf]


def test_logits_that_are_infinite_are_infinitely_far():
    rows = compare_logits(torch.zeros(1, 3), torch.tensor([[0.0, math.inf, 0.0]]))
    assert rows.differences == rows.kl == [math.inf]


def test_relative_errors_add_up_over_parts():
    error = RelativeError()
    error.add(torch.tensor([3.0]), torch.tensor([3.0]))
    error.add(torch.tensor([4.0]), torch.tensor([1.0]))
    assert error.value == pytest.approx(3 / 5)
    assert RelativeError().value == 0
    error.add(torch.tensor([1.0]), torch.tensor([math.nan]))
    assert error.value == math.inf


def figures(**changed) -> Agreement:
    """An agreement of ten positions without a difference, but for what is changed."""
    same = {"positions": 10, "max_difference": 0.0, "mean_kl": 0.0, "max_kl": 0.0}
    counts = {"decided": 8, "kept": 8, "near_ties": 2, "near_ties_kept": 1}
    return Agreement(**{**same, **counts, **changed})


def test_near_ties_do_not_count_against_top_1():
    assert SAME.exceeded(figures()) == ()
    assert figures(near_ties_kept=0).top1 == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_difference": 2e-4}, "difference of a logit is 0.0002, over 0.0001, 2 times"),
        ({"max_difference": math.inf}, "over 0.0001"),
        ({"max_difference": math.nan}, "over 0.0001"),
        ({"kept": 7}, "top-1 agreement is 87.50%, under 100.00%: 1 of 8"),
    ],
)
def test_what_is_over_is_said_with_how_much(changed, said):
    (line,) = SAME.exceeded(figures(**changed))
    assert said in line


def test_where_nothing_is_decided_top_1_is_not_judged_and_over():
    undecided = figures(decided=0, kept=0, near_ties=10)
    assert undecided.top1 is None
    (line,) = SAME.exceeded(undecided)
    assert "cannot be judged" in line
    assert Bounds(max_kl=1.0).exceeded(undecided) == ()


def test_a_reference_that_is_no_number_is_over():
    rows = compare_logits(torch.full((2, 5), math.nan), torch.zeros(2, 5))
    place = Place("asked", [0, 1], [1, 2], 1)
    found = agreement(rows, place, Words())
    assert found.decided == 0
    assert Bounds(min_top1=0.0).exceeded(found) and Bounds(max_kl=9.0).exceeded(found)


class Words:
    """As much of a tokenizer as a report asks for."""

    def token_text(self, id: int) -> str:
        return str(id)


def test_what_is_infinite_is_told_as_text_that_any_json_reader_takes():
    assert strict({"a": [1.0, math.inf], "b": (-math.inf, math.nan, None)}) == {
        "a": [1.0, "Infinity"],
        "b": ["-Infinity", "NaN", None],
    }


def test_only_what_is_bounded_is_judged():
    assert Bounds(max_mean_kl=0.1).exceeded(figures(max_difference=9.0, mean_kl=0.1)) == ()
    assert Bounds(max_mean_kl=0.1).exceeded(figures(mean_kl=0.2))
    assert not Bounds().are_given


def test_agreements_join_by_their_positions():
    both = joined([figures(mean_kl=0.3), figures(positions=30, mean_kl=0.1, max_kl=2.0)])
    assert both.positions == 40
    assert both.mean_kl == pytest.approx(0.15)
    assert (both.max_kl, both.decided, both.near_ties_kept) == (2.0, 16, 2)
