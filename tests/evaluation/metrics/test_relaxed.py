"""Relaxed accuracy as lmms-eval has it: `relaxed_worked.json` is what that gave (at 75571cf)."""

import json
from pathlib import Path

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.relaxed import relaxed

WORKED = json.loads(Path(__file__).parents[1].joinpath("relaxed_worked.json").read_text("utf-8"))


def test_worked_examples():
    assert {case["right"] for case in WORKED} == {True, False}
    for case in WORKED:
        item = Item("1", "How many?", (case["wanted"],), ())
        assert relaxed(item, case["said"]) == float(case["right"]), case


def test_any_of_several_references_will_do():
    assert relaxed(Item("1", "Who?", ("Ann", "Anne"), ()), "anne") == 1.0
