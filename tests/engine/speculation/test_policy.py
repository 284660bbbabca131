"""Guessing only where it pays: pure numbers, no model and no clock."""

from itertools import pairwise
from types import SimpleNamespace

import pytest

from gemma3vl_app.engine.speculation.policy import (
    MOST_GUESSED,
    MOST_ROWS,
    Chance,
    PassCosts,
    Record,
    plan,
)
from gemma3vl_app.engine.speculation.speculation import Speculation


def measured(row_share: float, rows=(1, 2, 4, 8, 16, 17, 32)) -> PassCosts:
    """Costs of a machine where a row more takes `row_share` of a pass of one row."""
    costs = PassCosts()
    for count in rows:
        for _ in range(2):
            costs.note(count, 1 + row_share * (count - 1))
    return costs


def test_where_rows_are_nearly_free_much_is_guessed():
    assert plan(1, [Chance(MOST_GUESSED, 0.9)], measured(0.01)) == [MOST_GUESSED]


def test_where_a_row_costs_a_pass_nothing_is_guessed():
    assert plan(1, [Chance(MOST_GUESSED, 0.9)], measured(1.0)) == [0]


def test_the_less_often_guesses_are_right_the_fewer_tokens_are_guessed():
    counts = [plan(1, [Chance(16, share)], measured(0.1))[0] for share in (0.95, 0.8, 0.5, 0.05)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[3] == 0


def test_a_matrix_product_that_is_slower_from_two_rows_on_is_seen_as_it_is():
    costs = PassCosts()  # as where one row is read at full speed and several are not
    for rows, seconds in ((1, 1.0), (2, 2.5), (8, 2.6), (16, 2.8)):
        costs.note(rows, seconds), costs.note(rows, seconds)
    assert plan(1, [Chance(16, 0.6)], costs) == [0]
    assert plan(1, [Chance(16, 0.95)], costs)[0] > 8


def test_with_many_answers_at_once_rows_that_cost_are_spent_on_fewer_guesses():
    costs = measured(0.3, rows=(1, 8, 16, 64))
    alone = plan(1, [Chance(8, 0.8)], costs)[0]
    # Eight rows share a pass of 3.1: a ninth costs a tenth of it and gives at most 0.8 of a token.
    together = plan(8, [Chance(8, 0.8)] * 8, costs)
    assert alone > max(together)
    assert plan(8, [Chance(8, 0.3)] * 8, costs) == [0] * 8
    assert plan(8, [Chance(0, 0.9)] * 7 + [Chance(8, 0.95)], measured(0.05))[:7] == [0] * 7


def test_rows_go_to_the_answers_whose_guesses_are_right_and_never_beyond_the_bound():
    counts = plan(16, [Chance(16, 0.9)] * 8 + [Chance(16, 0.2)] * 8, measured(0.001))
    assert sum(counts) <= MOST_ROWS
    assert min(counts[:8]) > max(counts[8:])


def test_time_that_guessing_takes_by_itself_counts():
    chance = [Chance(16, 0.9)]
    assert plan(1, chance, measured(0.01), token_sec=0.05)[0] > 2
    assert plan(1, chance, measured(0.01), token_sec=1.0) == [0]


def test_the_first_measurement_of_each_number_of_rows_is_left_out():
    costs = measured(0.1)
    costs.note(5, 100.0)
    assert costs.seconds(5) == pytest.approx(1.4)
    costs.note(5, 1.5)
    assert costs.seconds(5) == 1.5


def test_costs_are_estimated_between_and_beyond_what_was_measured():
    costs = measured(0.1, rows=(1, 9))
    assert costs.seconds(5) == pytest.approx(1.4)
    assert costs.seconds(13) == pytest.approx(2.2)
    assert PassCosts().seconds(1) == 1.0


def test_one_slow_pass_does_not_change_much():
    costs = measured(0.1)
    costs.note(1, 1000.0)
    assert costs.seconds(1) == pytest.approx(1.25)


def test_a_record_follows_what_became_of_guesses():
    good, bad = Record(), Record()
    for _ in range(10):
        good.note(8, 8)
        bad.note(0, 8)
    assert good.share > 0.95
    assert bad.share < 0.15


def test_what_does_not_pay_is_tried_again_ever_more_rarely():
    record, tries = Record(), []
    for step in range(2000):
        if record.let_go():
            tries.append(step)
            record.note(0, 4)
    gaps = [b - a for a, b in pairwise(tries)]
    assert tries[0] == 31
    assert gaps == sorted(gaps)
    assert len(tries) < 8


def test_what_a_pass_without_guesses_takes_is_measured_first_and_now_and_then():
    costs = PassCosts()
    assert costs.stale(1)
    costs.note(1, 1.0)
    assert costs.stale(1)  # that one only warmed up
    costs.note(1, 1.0)
    assert not costs.stale(1)
    for _ in range(64):
        costs.note(9, 1.0)
    assert costs.stale(1)
    assert not costs.stale(9)


class Machine:
    """A pretended machine: a clock that each pass moves on by what its rows cost."""

    def __init__(self, row_share: float) -> None:
        self.now, self._row_share = 0.0, row_share

    def run(self, rows: int) -> None:
        self.now += 1 + self._row_share * (rows - 1)


def written(row_share: float, right: int, tokens: int = 600) -> tuple[float, int]:
    """Write an answer whose guesses are right for `right` tokens; returns seconds and proposals."""
    machine = Machine(row_share)

    class Always:
        token_sec = 0.0

        def begin_pass(self):
            pass

        def available(self, sequence):
            return MOST_GUESSED

        def propose(self, wanted):
            return [[1] * count for _, count in wanted]

        def forget(self, sequence):
            pass

    class Answer:
        prompt_end, proposed_tokens, accepted_tokens = None, 0, 0
        request = SimpleNamespace(max_new_tokens=10**6)
        generated = ()

    speculation = Speculation(Always(), clock=lambda: machine.now)
    answer, done = Answer(), 0
    while done < tokens:
        (guess,) = speculation.guesses([answer])
        began = speculation.now()
        machine.run(1 + len(guess))
        speculation.note_pass(1 + len(guess), began)
        accepted = min(right, len(guess))
        if guess:
            speculation.note(answer, accepted, len(guess))
        done += 1 + accepted
    return machine.now, answer.proposed_tokens


@pytest.mark.parametrize(("row_share", "right", "at_most"), [(0.02, 16, 0.12), (0.2, 16, 0.35)])
def test_where_guesses_are_right_an_answer_takes_a_fraction_of_the_time(row_share, right, at_most):
    assert written(row_share, right)[0] < at_most * 600


@pytest.mark.parametrize(("row_share", "right"), [(0.02, 0), (0.5, 0), (0.5, 1), (1.0, 16)])
def test_where_guessing_does_not_pay_it_switches_itself_off(row_share, right):
    seconds, proposed = written(row_share, right)
    assert seconds < 1.07 * 600
    assert proposed < 100
