"""VQA accuracy; test_references.py has it beside the official script."""

import pytest

from gemma3vl_app.evaluation.metrics.vqa import agreement


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_the_published_table_of_people_who_agree(agreeing, score):
    """Of ten, with one left out in turn: 0.3 for each of the first three, 1 from four on."""
    assert agreement("yes", ["yes"] * agreeing + ["no"] * (10 - agreeing)) == pytest.approx(score)


def test_a_single_reference_is_right_or_wrong():
    assert agreement("red", ["red"]) == 1.0
    assert agreement("blue", ["red"]) == 0.0
