"""OCRBench: right or wrong for every item, error rates where words are to be read."""

import json

import pytest

import gemma3vl_app as gv
from gemma3vl_app.evaluation.comparing import compare
from gemma3vl_app.evaluation.report import REPORT
from tests.evaluation import published
from tests.evaluation.answering import AnsweringBackend

ANSWERS = {
    "written in the image?": "Centre",  # right, capitals aside
    "written in the picture?": "The coffee shop.",  # one character of 16 too many, one word of 3
    "expression": "x^{2}",
    "date": "February",
}
REGULAR, IRREGULAR = "Regular Text Recognition", "Irregular Text Recognition"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ocrbench")
    published.dataset(published.OCRBENCH).save_to_disk(folder / "set")
    return folder


@pytest.fixture(scope="module")
def done(folder):
    backend = AnsweringBackend(ANSWERS)
    return gv.evaluate(backend, "ocrbench", data=folder / "set", out=folder / "run")


def test_items_of_recognition_kinds_have_error_rates_beside_right_and_wrong(done):
    told = {(score.metric, score.kind): (score.value, score.items) for score in done.scores}
    assert told["contains", "all"] == (0.75, 4)
    assert told["cer", "all"] == (pytest.approx(1 / (6 + 15)), 2)
    assert told["wer", "all"] == (pytest.approx(1 / 4), 2)
    assert told["cer", IRREGULAR] == (pytest.approx(1 / 15), 1)
    assert told["cer", REGULAR] == (0.0, 1)
    assert {kind for metric, kind in told if metric == "cer"} == {"all", REGULAR, IRREGULAR}
    assert {kind for metric, kind in told if metric == "contains"} > {"all", "Doc-oriented VQA"}


def test_answers_are_ordered_by_right_and_wrong(done):
    assert done.score.metric == "contains"
    assert [case.text for case in done.worst(9)] == ["February"]


def test_files_tell_nothing_of_a_rate_where_there_is_none(done, folder):
    page = (folder / "run" / REPORT).read_text("utf-8")
    tables = page.split("<table>")[1:]
    assert ["Doc-oriented" in table.split("</table>")[0] for table in tables] == [
        True,
        False,
        False,
    ]
    (samples,) = (folder / "run" / "lm_eval").glob("samples_*")
    rates = [json.loads(line)["cer"] for line in samples.read_text("utf-8").splitlines()]
    assert rates == [0.0, None, pytest.approx(1 / 15), None]


def test_without_recognition_kinds_there_are_no_rates(folder):
    columns = {name: values[3:] for name, values in published.OCRBENCH.items()}
    published.dataset(columns).save_to_disk(folder / "documents")
    other = gv.evaluate(AnsweringBackend(ANSWERS), "ocrbench", data=folder / "documents")
    assert [score.metric for score in other.scores] == ["contains"]


def test_runs_are_compared_by_rates_where_both_have_them(done, folder):
    worse = AnsweringBackend(ANSWERS | {"written in the image?": "Center"})
    gv.evaluate(worse, "ocrbench", data=folder / "set", out=folder / "worse")
    changes = {
        (each.metric.name, each.kind): (each.items, each.gained)
        for each in compare(folder / "run", folder / "worse").changes
    }
    assert changes["cer", "all"] == (2, pytest.approx(2 / 21))
    assert ("cer", "Doc-oriented VQA") not in changes


def test_a_run_of_before_there_were_rates_is_compared_by_what_it_has(done, folder):
    old = folder / "old"
    gv.evaluate(AnsweringBackend(ANSWERS), "ocrbench", data=folder / "set", out=old)
    lines = [json.loads(line) for line in (old / "scored.jsonl").read_text().splitlines()]
    for line in lines:
        line["parts"] = {"contains": line["parts"]["contains"]}
    (old / "scored.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = compare(old, folder / "run").changes
    assert {change.metric.name for change in changes} == {"contains"}
