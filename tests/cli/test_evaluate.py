"""`gemma3vl evaluate`: what is shown, where it goes, and what is told of failures."""

import json
import re

import pytest

import gemma3vl_app.backends.load
from gemma3vl_app.cli import evaluate as command
from gemma3vl_app.evaluation.suites import SUITES
from tests.evaluation.answering import AnsweringBackend, animals

RIGHT = {f"number {n}?": f"animal {n}" for n in range(20)}


class Loaded:
    """What each load gives: a new backend, since a command closes its own."""

    def __init__(self):
        self.answers = {k: v for k, v in RIGHT.items() if k != "number 3?"}
        self.backends = []

    def load(self, *_, **__):
        self.backends.append(AnsweringBackend(self.answers))
        return self.backends[-1]

    @property
    def asked(self):
        return [question for backend in self.backends for question in backend.asked]


@pytest.fixture
def backend(monkeypatch, tmp_path):
    made = Loaded()
    monkeypatch.setattr(gemma3vl_app.backends.load, "load", made.load)
    monkeypatch.chdir(tmp_path)
    animals(tmp_path)
    return made


def test_a_table_is_printed_and_files_are_written(backend, run, tmp_path):
    code, out, err = run("evaluate", "demo", "docvqa", "--data", "data.jsonl")
    assert code == 0
    head, *rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    assert head == ["kind", "metric", "items", "failed", "score", "95 % interval"]
    assert rows[0][:4] == ["all", "anls", "6", "83.3%"]
    assert [row[0] for row in rows] == ["all", "even", "odd"]
    folder = tmp_path / "runs" / "evaluate" / "docvqa-demo"
    assert {p.name for p in folder.iterdir()} >= {"results.json", "report.html", "answers.jsonl"}
    assert "runs/evaluate/docvqa-demo/report.html shows" in err


def test_the_same_command_goes_on_and_a_limit_can_be_raised(backend, run, tmp_path):
    options = ("--data", "data.jsonl", "--out", "run")
    assert run("evaluate", "demo", "docvqa", *options, "--limit", "2", "--seed", "1")[0] == 0
    assert len(backend.asked) == 2
    assert run("evaluate", "demo", "docvqa", *options, "--seed", "1")[0] == 0
    assert len(backend.asked) == 6
    assert json.loads((tmp_path / "run" / "results.json").read_text())["answered_earlier"] == 2
    code, _, err = run("evaluate", "demo", "docvqa", *options, "--max-new-tokens", "3")
    assert code == 1
    assert "begun with other settings: --max-new-tokens" in err and "--restart" in err


def test_failed_items_are_told_and_the_exit_code_is_3(backend, run, tmp_path):
    (tmp_path / "2.png").unlink()
    code, out, err = run("evaluate", "demo", "docvqa", "--data", "data.jsonl")
    assert code == 3
    assert "  2: Picture '2.png' was not found." in err
    assert "They count as wrong. With --retry-failed they are asked again." in err
    assert re.search(r"all +anls +6 +1 +66.7%", out)


def test_two_runs_are_compared(backend, run):
    for name in ("a", "b"):
        run("evaluate", "demo", "docvqa", "--data", "data.jsonl", "--out", name)
        backend.answers = RIGHT
    code, out, err = run("evaluate", "--compare", "a", "b")
    assert code == 0
    assert re.search(r"all +anls +6 +83.3% +100.0% +16.7%", out)
    assert "a is scripted (a), b is scripted (b), on docvqa" in err
    assert "asked otherwise" not in err
    run("evaluate", "demo", "docvqa", "--data", "data.jsonl", "--out", "c", "--crops", "off")
    err = run("evaluate", "--compare", "a", "c")[2]
    assert "They were asked otherwise: crops is auto in a, off in b" in err
    assert run("evaluate", "--compare", "a", "d")[0] == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("demo", "docvqs"), "There is no suite 'docvqs'. There are: docvqa,"),
        (("demo",), "Say which model and which suite"),
        (("demo", "scenes", "--compare", "a", "b"), "--compare asks no model"),
        (("demo", "docvqa", "--limit", "0"), "--limit"),
        (("demo", "docvqa", "--weights", "fp17"), "fp17"),
    ],
)
def test_a_wrong_command_line_is_told_before_a_model_is_loaded(run, monkeypatch, words, told):
    monkeypatch.setattr(gemma3vl_app.backends.load, "load", None)
    code, _, err = run("evaluate", *words)
    assert code == 2 and told in err


def test_data_that_cannot_be_used_is_told_before_a_model_is_loaded(run, monkeypatch, tmp_path):
    monkeypatch.setattr(gemma3vl_app.backends.load, "load", None)
    (tmp_path / "bad.jsonl").write_text('{"question": "What?"}\n')
    code, _, err = run("evaluate", "demo", "docvqa", "--data", str(tmp_path / "bad.jsonl"))
    assert code == 1
    assert "1 of 1 rows of 'bad.jsonl' cannot be used: bad.jsonl:1 has no answer" in err


def test_a_suite_without_data_of_its_own_names_the_option(run, monkeypatch):
    monkeypatch.setattr(gemma3vl_app.backends.load, "load", None)
    code, _, err = run("evaluate", "demo", "reading")
    assert code == 1 and "Give --data FILE." in err


def test_the_help_names_every_suite():
    assert command.SUITES.split(", ") == list(SUITES)


def test_a_folder_is_named_after_the_last_part_of_a_model():
    names = ("demo", "google/gemma-3-4b-it", "/a/b/", "http://host:8000/v1", "..")
    assert [command._short(name) for name in names] == ["demo", "gemma-3-4b-it", "b", "v1", "model"]
