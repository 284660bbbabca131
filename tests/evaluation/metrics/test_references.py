"""Metrics beside their reference implementations, whose results `references/record.py` wrote down.

Where ours is meant to differ from a reference, the case says what it is (`ours`) and `why`.
"""

import json
import runpy
from collections import Counter
from pathlib import Path

import pytest

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.anls import anls
from gemma3vl_app.evaluation.metrics.choices import chosen, is_chosen
from gemma3vl_app.evaluation.metrics.reading import contains
from gemma3vl_app.evaluation.metrics.relaxed import relaxed
from gemma3vl_app.evaluation.metrics.vqa import textvqa_accuracy, vqa_accuracy

REFERENCES = Path(__file__).parents[1] / "references"
DOCS = Path(__file__).parents[3] / "docs" / "evaluation.md"


def cases(name):
    return json.loads((REFERENCES / f"{name}.json").read_text("utf-8"))


def item(answers, kinds=(), options=()):
    return Item("1", "What?", tuple(answers), (), tuple(kinds), tuple(options))


SINGLE = {
    "anls": ("score", lambda case: anls(item(case["answers"]), case["said"])),
    "relaxed": ("right", lambda case: relaxed(item([case["wanted"]]), case["said"])),
    "ocrbench": (
        "right",
        lambda case: contains(item(case["answers"], [case["kind"]]), case["said"]),
    ),
    "choices": ("letter", lambda case: chosen(item("A", (), case["options"]), case["said"])),
    "free": ("right", lambda case: is_chosen(item(case["answers"]), case["said"])),
}


def same(one, other):
    return one == other if isinstance(one, str) else one == pytest.approx(float(other), abs=1e-6)


@pytest.mark.parametrize("name", SINGLE)
def test_a_metric_gives_what_its_reference_gives_but_for_the_differences_that_are_listed(name):
    result, score = SINGLE[name]
    assert len(cases(name)) > 20
    for case in cases(name):
        assert same(score(case), case.get("ours", case[result])), case


@pytest.mark.parametrize("name", ["official", "textvqa"])
def test_vqa_accuracy_is_that_of_the_official_script_and_of_its_textvqa_form(name):
    score = {"official": vqa_accuracy, "textvqa": textvqa_accuracy}[name]
    for case in cases("vqa"):
        expected = case.get("ours", {}).get(name, case[name])
        assert score(item(case["answers"]), case["said"]) == pytest.approx(expected, abs=1e-4), case


def test_vqav2_in_lmms_eval_differs_only_where_all_people_agree():
    """It brings answers into one form always, the official script only where people disagree."""
    several = [case for case in cases("vqa") if len(case["answers"]) > 1]
    different = [case for case in several if case["vqav2"] != pytest.approx(case["official"])]
    assert len(different) == 5
    assert all(len(set(case["answers"])) == 1 for case in different)


def test_a_difference_that_is_listed_is_one_and_has_its_reason():
    for name, (result, _) in SINGLE.items():
        for case in cases(name):
            assert ("ours" in case) == ("why" in case)
            assert "ours" not in case or not same(case["ours"], case[result]), case
    for case in cases("vqa"):
        for name, ours in case.get("ours", {}).items():
            assert case["why"] and ours != case[name]


def test_every_sort_of_result_is_among_the_cases():
    letters = Counter(case["letter"] for case in cases("choices"))
    assert set("ABCD") < set(letters)
    for name in ("relaxed", "ocrbench", "free"):
        right = [bool(case["right"]) for case in cases(name)]
        assert 0.25 < sum(right) / len(right) < 0.8, name


def test_the_page_names_the_version_that_the_script_asks_for():
    script = runpy.run_path(str(REFERENCES / "record.py"))
    assert f"lmms-eval {script['LMMS_EVAL']}" in DOCS.read_text("utf-8")
    assert script["GUESS"] in {case["letter"] for case in cases("choices")}
