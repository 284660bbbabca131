"""What lm-eval and lmms-eval make of our files with their own functions, where they are installed.

Neither is a dependency; references/record.py says how to make an environment that has lmms-eval.
"""

import json

import pytest

import gemma3vl_app as gv
from tests.evaluation.answering import AnsweringBackend, animals


@pytest.fixture
def run(tmp_path):
    backend = AnsweringBackend({"number 1?": "animal 1", "number 3?": "animal x"})
    done = gv.evaluate(backend, "docvqa", data=animals(tmp_path), out=tmp_path / "run")
    assert done.score.value == pytest.approx((1 + 7 / 8) / 6)
    return tmp_path / "run"


def cells(table):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [row for row in rows if len(row) > 3 and row[0] == "docvqa"]


def test_lm_eval_prints_our_results_as_its_table(run):
    utils = pytest.importorskip("lm_eval.utils")
    (path,) = (run / "lm_eval").glob("results_*.json")
    ((_, version, filtered, shots, metric, better, value, _, error),) = cells(
        utils.make_table(json.loads(path.read_text()))
    )
    assert (version, filtered, shots, metric, better) == ("1", "none", "0", "anls", "↑")
    assert value == "0.3125" and 0.1 < float(error) < 0.3


def test_lmms_eval_prints_our_results_as_its_table(run):
    utils = pytest.importorskip("lmms_eval.utils")
    (path,) = (run / "lmms_eval").glob("*_results.json")
    ((_, filtered, shots, metric, better, value, _, error, *_),) = cells(
        utils.make_table(json.loads(path.read_text()))
    )
    assert (filtered, shots, metric, better) == ("none", "0", "anls", "↑")
    assert value == "0.3125" and 0.1 < float(error) < 0.3


def test_lmms_eval_takes_our_samples_as_a_baseline(run):
    loader = pytest.importorskip("lmms_eval.baselines.loader")
    (path,) = (run / "lmms_eval").glob("*_samples_docvqa.jsonl")
    scores, results = loader.load_baseline(str(path), "docvqa")
    assert scores == pytest.approx({0: 0, 1: 1, 2: 0, 3: 7 / 8, 4: 0, 5: 0})
    assert results["results"]["docvqa"]["anls,none"] == pytest.approx(0.3125)
