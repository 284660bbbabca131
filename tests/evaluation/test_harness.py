"""Files in the form of lm-eval: the fields that lm-eval 0.4.13 wrote itself, of the same kinds.

`lm_eval/` holds what its command wrote for two tasks with its dummy model.
"""

import dataclasses
import json
from pathlib import Path

import jinja2
import pytest

import gemma3vl_app as gv
from gemma3vl_app.errors import EvaluationError
from gemma3vl_app.evaluation.data import read_data
from gemma3vl_app.evaluation.suites import SUITES
from tests.evaluation.answering import AnsweringBackend, animals, write_jsonl

THEIRS = Path(__file__).parent / "lm_eval"


def written(folder):
    (results,) = (folder / "lm_eval").glob("results_*.json")
    (samples,) = (folder / "lm_eval").glob("samples_*.jsonl")
    lines = samples.read_text(encoding="utf-8").splitlines()
    return json.loads(results.read_text(encoding="utf-8")), [json.loads(line) for line in lines]


def theirs(name):
    return json.loads((THEIRS / name).read_text().splitlines()[0])


def kind(value):
    return "number" if isinstance(value, int | float) else type(value).__name__


@pytest.fixture
def run(tmp_path):
    backend = AnsweringBackend({"number 1?": "animal 1"})
    gv.evaluate(backend, "docvqa", data=animals(tmp_path), out=tmp_path / "run", limit=4)
    return tmp_path / "run"


def test_results_have_every_field_that_lm_eval_writes(run):
    ours, _ = written(run)
    real = json.loads((THEIRS / "results.json").read_text())
    assert set(ours) == set(real)
    for name, value in real.items():
        known = ours[name]
        assert known is None or value is None or kind(known) == kind(value), name
    assert set(ours["config"]) == set(real["config"])
    assert set(ours["configs"]["docvqa"]) >= set(real["configs"]["cats"]) - {"fewshot_config"}
    shape = {key.replace("exact_match", "anls") for key in real["results"]["cats"]}
    assert set(ours["results"]["docvqa"]) == shape
    assert ours["n-samples"] == {"docvqa": {"original": 6, "effective": 4}}
    assert ours["higher_is_better"] == {"docvqa": {"anls": True}}


def test_scores_and_standard_errors_are_those_of_the_run(run):
    ours, samples = written(run)
    told = json.loads((run / "results.json").read_text())
    assert ours["results"]["docvqa"]["anls,none"] == told["scores"][0]["value"]
    scores = [sample["anls"] for sample in samples]
    assert sum(scores) / 4 == pytest.approx(told["scores"][0]["value"])
    mean = sum(scores) / 4
    expected = (sum((s - mean) ** 2 for s in scores) / 4 / 4) ** 0.5
    assert ours["results"]["docvqa"]["anls_stderr,none"] == pytest.approx(expected, rel=0.1)


def test_samples_of_written_answers_have_every_field_of_the_same_kind(run):
    _, samples = written(run)
    real = theirs("samples_cats.jsonl")
    for sample in samples:
        assert set(sample) == {key.replace("exact_match", "anls") for key in real}
        for name in set(real) - {"exact_match"}:
            assert kind(sample[name]) == kind(real[name]), name
        assert list(sample["arguments"]) == ["gen_args_0"]
        assert set(sample["arguments"]["gen_args_0"]) == {"arg_0", "arg_1"}
        assert sample["resps"] == [[sample["filtered_resps"][0]]]
        assert sample["metrics"] == ["anls"]
        assert len(sample["doc_hash"]) == len(real["doc_hash"])
    assert [sample["doc_id"] for sample in samples] == [0, 1, 2, 3]


def test_samples_of_letters_are_those_of_a_multiple_choice(tmp_path):
    rows = [{"question": "Which?", "options": ["red", "blue"], "answer": "B"}]
    backend = AnsweringBackend(letters={"A": -1.5, "B": -0.25})
    gv.evaluate(backend, "mmmu", data=write_jsonl(tmp_path, *rows), out=tmp_path / "run")
    (ours,) = written(tmp_path / "run")[1]
    real = theirs("samples_letters.jsonl")
    assert set(ours) == {"accuracy" if key == "acc" else key for key in real}
    assert ours["resps"] == [[["-1.5", "False"]], [["-0.25", "True"]]]
    assert kind(ours["resps"][0][0][0]) == kind(real["resps"][0][0][0])
    assert list(ours["arguments"]) == list(real["arguments"])
    assert (ours["target"], ours["accuracy"]) == ("B", 1.0)
    (config,) = written(tmp_path / "run")[0]["configs"].values()
    assert config["output_type"] == "multiple_choice"


def test_the_template_gives_the_prompts_of_questions_with_and_without_options(tmp_path):
    rows = [
        {"question": "Which {one}?", "options": ["red", "{{ blue }}"], "answer": "B"},
        {"question": "How many?", "answer": "3"},
    ]
    backend = AnsweringBackend(letters={"A": -1.5, "B": -0.25})
    gv.evaluate(backend, "mmmu", data=write_jsonl(tmp_path, *rows), out=tmp_path / "run")
    results, samples = written(tmp_path / "run")
    template = jinja2.Template(results["configs"]["mmmu"]["doc_to_text"])
    prompts = [sample["arguments"]["gen_args_0"]["arg_0"] for sample in samples]
    assert [template.render(sample["doc"]) for sample in samples] == prompts


def test_error_rates_are_no_means_of_the_samples(tmp_path):
    rows = [{"picture": "a.png", "text": text} for text in ("one", "a longer text")]
    gv.evaluate(
        AnsweringBackend({"": "one"}),
        "reading",
        data=write_jsonl(tmp_path, *rows),
        out=tmp_path / "run",
    )
    (config,) = written(tmp_path / "run")[0]["configs"].values()
    assert [each["aggregation"] for each in config["metric_list"]] == ["weighted_mean"] * 2


def test_the_split_is_that_of_the_data_that_were_asked(run, tmp_path):
    (config,) = written(run)[0]["configs"].values()
    assert (config["dataset_name"], config["test_split"]) == (None, None)
    data = dataclasses.replace(
        read_data(SUITES["docvqa"], tmp_path / "data.jsonl"), config="small", split="dev"
    )
    gv.evaluate(AnsweringBackend(), "docvqa", data=data, out=tmp_path / "other")
    (config,) = written(tmp_path / "other")[0]["configs"].values()
    assert (config["dataset_name"], config["test_split"]) == ("small", "dev")
    told = json.loads((tmp_path / "other" / "results.json").read_text())["data"]
    assert (told["config"], told["split"]) == ("small", "dev")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "lm_eval").write_text("a file")
    with pytest.raises(EvaluationError, match="'lm_eval' cannot be written"):
        gv.evaluate(AnsweringBackend(), "docvqa", data=animals(tmp_path), out=out)


def test_the_package_datasets_reads_the_samples(run):
    import datasets

    (samples,) = (run / "lm_eval").glob("samples_*.jsonl")
    read = datasets.load_dataset("json", data_files=str(samples), split="train")
    assert len(read) == 4 and read["target"][0].startswith("animal")


def test_a_later_run_takes_the_place_of_the_earlier_files(run, tmp_path):
    gv.evaluate(AnsweringBackend(), "docvqa", data=tmp_path / "data.jsonl", out=run)
    assert len(written(run)[1]) == 6
