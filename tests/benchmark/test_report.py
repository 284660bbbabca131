"""What the benchmark reports: verdicts, and a page that agrees with its data."""

import json
from pathlib import Path

import pytest

from gemma3vl_app.benchmark.__main__ import with_table, without
from gemma3vl_app.benchmark.result import Result

ROOT = Path(__file__).parents[2]


def result(bound: str, value: float) -> Result:
    return Result(
        name="n", value=value, baseline=2.0, unit="s", baseline_name="b", bound=bound, target=2.0
    )


@pytest.mark.parametrize(
    ("bound", "value", "share", "met"),
    [
        ("at most", 4.0, 1.0, True),
        ("at most", 4.1, 1.0, False),
        ("at most", 5.6, 0.7, True),
        ("at least", 4.0, 1.0, True),
        ("at least", 3.9, 1.0, False),
        ("at least", 2.9, 0.7, True),
        ("at least", 2.7, 0.7, False),
        ("within", 1.1, 1.0, True),
        ("within", 3.9, 1.0, True),
        ("within", 0.9, 0.7, False),
        ("within", 4.1, 0.7, False),
    ],
)
def test_a_target_is_met_or_missed_with_the_share_asked_for(bound, value, share, met):
    assert result(bound, value).met(share) is met


def test_the_page_shows_what_was_measured_last():
    page = (ROOT / "docs/performance.md").read_text()
    report = json.loads((ROOT / "docs/bench.json").read_text())
    assert with_table(page, report) == page
    assert all(each["name"] in page for run in report["runs"] for each in run["results"])


def test_measuring_one_thing_anew_keeps_the_others():
    runs = [{"commit": "a", "results": [{"name": "x"}, {"name": "y"}]}]
    assert without(runs, {"x"}) == [{"commit": "a", "results": [{"name": "y"}]}]
    assert without(runs, {"x", "y"}) == []
