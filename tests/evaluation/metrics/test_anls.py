"""ANLS as the package `anls` has it."""

import random

import pytest
from anls import anls_score

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.anls import anls


def item(*answers):
    return Item("1", "What?", answers, ())


@pytest.mark.parametrize(
    ("said", "answers", "score"),
    [
        ("cat", ["cat"], 1.0),
        ("  The CAT ", ["the cat"], 1.0),
        ("cats", ["cat"], 0.75),
        ("dog", ["cat", "dogs"], 0.75),
        ("ca", ["cats"], 0.0),  # half of it is wrong: the threshold
        ("", ["cat"], 0.0),
    ],
)
def test_an_answer_scores_by_its_likeness_to_the_nearest_reference(said, answers, score):
    assert anls(item(*answers), said) == pytest.approx(score)


def test_it_equals_the_reference_package():
    rng = random.Random(3)
    words = ["Invoice", "1,234.50", "March 3", "the", "University of", "é", "Q3", " ", "\n"]
    for _ in range(500):
        answers = ["".join(rng.choices(words, k=3)) for _ in range(3)]
        said = list(rng.choice(answers))
        for _ in range(rng.randrange(4)):
            said[rng.randrange(len(said))] = rng.choice("aZ 1")
        text = "".join(said)
        assert anls(item(*answers), text) == pytest.approx(anls_score(text, answers))
