"""Files in the form of lmms-eval: the fields that lmms-eval 0.7.3 wrote itself, of the same kinds.

`lmms_eval/` holds what its command wrote for one task with its dummy model: `python -m lmms_eval
--model dummy --model_args response=lol --tasks cats --include_path . --log_samples --output_path
out`, where `cats` asks the two questions of samples_cats.jsonl and is scored by `anls`.
"""

import json
from pathlib import Path

import pytest

import gemma3vl_app as gv
from gemma3vl_app.evaluation.data import read_data
from gemma3vl_app.evaluation.lmms_harness import METRICS, TASKS
from gemma3vl_app.evaluation.suites import SUITES
from tests.evaluation import published
from tests.evaluation.answering import AnsweringBackend, animals, write_jsonl
from tests.evaluation.test_harness import kind

THEIRS = Path(__file__).parent / "lmms_eval"


def written(folder):
    (results,) = (folder / "lmms_eval").glob("*_results.json")
    date = results.name.removesuffix("_results.json")
    (samples,) = (folder / "lmms_eval").glob(f"{date}_samples_*.jsonl")
    lines = samples.read_text(encoding="utf-8").splitlines()
    return json.loads(results.read_text(encoding="utf-8")), [json.loads(line) for line in lines]


@pytest.fixture
def run(tmp_path):
    backend = AnsweringBackend({"number 1?": "animal 1"})
    gv.evaluate(backend, "docvqa", data=animals(tmp_path), out=tmp_path / "run", limit=4)
    return tmp_path / "run"


def agree(ours, real, *, but=()):
    """Whether all fields of `real` are in ours, and no others, of the same kind where known."""
    assert set(ours) - set(but) == set(real)
    for name, value in real.items():
        known = ours[name]
        assert known is None or value is None or kind(known) == kind(value), name


def test_results_have_every_field_that_lmms_eval_writes(run):
    ours, _ = written(run)
    real = json.loads((THEIRS / "results.json").read_text())
    agree(ours, real)
    agree(ours["config"], real["config"])
    agree(ours["configs"]["docvqa"], real["configs"]["cats"])
    assert set(ours["results"]["docvqa"]) == set(real["results"]["cats"])
    assert len(ours["date"]) == len(real["date"])
    assert ours["n-samples"] == {"docvqa": {"original": 6, "effective": 4}}


def test_samples_have_every_field_and_the_score_by_which_runs_are_compared(run):
    ours, samples = written(run)
    real = json.loads((THEIRS / "samples_cats.jsonl").read_text().splitlines()[0])
    for sample in samples:
        agree(sample, real, but=["score"])
        assert sample["score"] == sample["anls"]
    assert sum(each["score"] for each in samples) / 4 == ours["results"]["docvqa"]["anls,none"]
    asked = "What is number 1?\nAnswer the question using a single word or phrase."
    assert [each["filtered_resps"] for each in samples if each["input"] == asked] == ["animal 1"]


def test_a_letter_that_was_weighed_is_told_as_the_answer(tmp_path):
    rows = [{"question": "Which?", "options": ["red", "blue"], "answer": "B"}]
    backend = AnsweringBackend(letters={"A": -1.5, "B": -0.25})
    gv.evaluate(backend, "mmmu", data=write_jsonl(tmp_path, *rows), out=tmp_path / "run")
    results, (sample,) = written(tmp_path / "run")
    assert (sample["filtered_resps"], sample["target"], sample["mmmu_acc"]) == ("B", "B", 1.0)
    assert results["results"]["mmmu"]["mmmu_acc,none"] == 1.0
    assert results["configs"]["mmmu"]["output_type"] == "generate_until"


@pytest.mark.parametrize("name", published.OF)
def test_tasks_and_metrics_have_lmms_evals_names_on_published_sets(name, tmp_path, monkeypatch):
    import datasets

    made = published.dataset(published.OF[name])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    letters = dict.fromkeys("ABCD", -1.0)
    data = read_data(SUITES[name])
    gv.evaluate(AnsweringBackend(letters=letters), name, data=data, out=tmp_path)
    results, samples = written(tmp_path)
    task = TASKS.get(name, name)
    (metric, *_) = METRICS.get(name, {"anls": "anls"}).values()
    assert list(results["results"]) == list(results["configs"]) == [task]
    assert f"{metric},none" in results["results"][task]
    assert metric in samples[0] and results["higher_is_better"][task][metric]


def test_a_later_run_takes_the_place_of_the_earlier_files(run, tmp_path):
    gv.evaluate(AnsweringBackend(), "docvqa", data=tmp_path / "data.jsonl", out=run)
    assert len(written(run)[1]) == 6


def test_restart_deletes_them(run, tmp_path):
    backend = AnsweringBackend()
    backend.close()
    with pytest.raises(gv.errors.EngineError):
        gv.evaluate(backend, "textvqa", data=tmp_path / "data.jsonl", out=run, restart=True)
    assert list((run / "lmms_eval").iterdir()) == []
