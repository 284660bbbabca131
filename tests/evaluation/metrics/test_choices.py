"""Which option an answer chooses."""

import pytest

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.choices import chosen, is_chosen

OPTIONS = ("a cat", "a dog", "a hare", "none of them")


def choice(answer="B"):
    return Item("1", "Which?", (answer,), (), (), OPTIONS)


def free(*answers):
    return Item("1", "How many?", answers, ())


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("'B'", "B"),
        ("B. a dog", "B"),
        ("The answer is B", "B"),
        ("It is not (A) but (C).", "C"),
        ("A dog is shown, so I choose B", "B"),
        ("It looks like a hare to me.", "C"),
        ("I'd say a dog", "B"),
        ("b", ""),
        ("", ""),
        ("Bananas", ""),
        ('{"A": -1.5, "B": -0.2, "C": -4.0, "D": -5.5}', "D"),  # a text like others
        ("{not json", ""),
    ],
)
def test_the_letter_of_an_answer(said, letter):
    assert chosen(choice(), said) == letter


def test_no_letter_is_wrong_not_guessed():
    assert [is_chosen(choice(), said) for said in ("B", "C", "Hm.")] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("said", "answers", "right"),
    [
        ("12", ("12",), 1),
        ("The answer is 1,200.", ("1200",), 1),
        ("x = 3.14159", ("3.14",), 1),
        ("I see 12 here, so the total is 13", ("12",), 0),
        ("-5", ("5",), 0),
        ("The capital is Paris", ("Paris",), 1),
        ("Parisian", ("Paris",), 0),
        ("two", ("1", "two"), 1),
        ("2:30", ("2:30",), 1),
        ("The ratio is 1:2", ("1:2",), 1),
        ("y = 2x", ("y = 2x",), 1),
        ("So y = 2x.", ("2x",), 1),
        ("It is Rome.\nThe answer is Paris", ("Rome",), 0),
        ("12 is the number of legs: 4", ("12",), 0),
        ("", ("1",), 0),
        ("...", ("1",), 0),
    ],
)
def test_a_free_answer_is_right_by_its_end(said, answers, right):
    assert is_chosen(free(*answers), said) == right
