"""Relaxed accuracy; test_references.py has it beside lmms-eval's."""

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.relaxed import relaxed


def test_any_of_several_references_will_do():
    assert relaxed(Item("1", "Who?", ("Ann", "Anne"), ()), "anne") == 1.0
