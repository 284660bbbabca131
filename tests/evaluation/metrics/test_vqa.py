"""VQA accuracy as the official script has it.

`vqa_worked.json` holds answers with what that script (GT-Vision-Lab/VQA at a013f00, with its prints
in Python 3) gave for them, and with what TextVQA's form of it (`EvalAIAnswerProcessor`) gave.
"""

import json
from pathlib import Path

import pytest

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.vqa import agreement, textvqa_accuracy, vqa_accuracy

WORKED = json.loads(Path(__file__).parents[1].joinpath("vqa_worked.json").read_text("utf-8"))


def test_worked_examples_of_the_official_script():
    assert len(WORKED) == 48
    for case in WORKED:
        item = Item("1", "What?", tuple(case["answers"]), ())
        assert vqa_accuracy(item, case["said"]) == pytest.approx(case["official"], abs=1e-6), case
        assert textvqa_accuracy(item, case["said"]) == pytest.approx(case["textvqa"], abs=1e-6)


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_the_published_table_of_people_who_agree(agreeing, score):
    """Of ten, with one left out in turn: 0.3 for each of the first three, 1 from four on."""
    assert agreement("yes", ["yes"] * agreeing + ["no"] * (10 - agreeing)) == pytest.approx(score)


def test_a_single_reference_is_right_or_wrong():
    assert agreement("red", ["red"]) == 1.0
    assert agreement("blue", ["red"]) == 0.0
