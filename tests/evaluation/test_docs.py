"""docs/evaluation.md says what the code does."""

import json
import re
import sys
from pathlib import Path

import pytest

import gemma3vl_app as gv
from gemma3vl_app import cli
from gemma3vl_app.cli import evaluate as command
from gemma3vl_app.evaluation.intervals import RESAMPLES
from gemma3vl_app.evaluation.results import Evaluation, Score
from gemma3vl_app.evaluation.suites import SUITES
from gemma3vl_app.folders.asking import UNWRITTEN
from tests.evaluation import published, shown
from tests.evaluation.answering import AnsweringBackend, animals

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "evaluation.md").read_text(encoding="utf-8")


def test_the_table_of_suites_is_that_of_the_code():
    rows = {
        row[0].strip(" `"): [cell.strip() for cell in row[1:]]
        for line in PAGE.splitlines()
        if re.match(r"\| `\w+` \|", line) and len(row := line.strip("|").split("|")) == 5
    }
    assert set(rows) == set(SUITES)
    for name, (place, _, prompt, tokens) in rows.items():
        suite = SUITES[name]
        assert int(tokens.replace(",", "")) == suite.max_new_tokens
        if suite.published:
            assert place == f"{suite.published.name}, {suite.published.split}"
        if prompt.endswith("."):
            assert suite.prompt.endswith(prompt)


@pytest.mark.parametrize(
    ("name", "suite", "score"),
    [("my-questions", "docvqa", 1.0), ("my-choices", "mmmu", 1.0), ("my-pages", "reading", 0.0)],
)
def test_files_of_the_page_are_asked_and_scored_as_shown(tmp_path, name, suite, score):
    assert f" {suite} --data {name}.jsonl" in PAGE
    answers = {"total?": "12.50", "shop?": "No", "doors?": "2", "": "Total: EUR 12.50"}
    backend = AnsweringBackend(answers, letters={"A": -2.0, "B": -0.2})
    done = gv.evaluate(backend, suite, data=shown.write_shown(tmp_path, f"{name}.jsonl"))
    assert not done.failed and done.score.value == score


def test_what_is_asked_again_after_a_kill_is_as_many_as_the_page_says():
    assert f"the last {UNWRITTEN} questions" in PAGE


def test_every_file_that_is_written_is_in_the_table(tmp_path):
    out = tmp_path / "run"
    gv.evaluate(AnsweringBackend(), "docvqa", data=animals(tmp_path, 2), out=out)
    for name in {path.name for path in out.iterdir()} - {"lm_eval", "lmms_eval"}:
        assert f"| `{name}` |" in PAGE


def test_the_number_of_resamples_is_that_of_the_code():
    assert f"{RESAMPLES:,} times" in PAGE


def test_the_printed_table_is_of_the_command_above_it(capsys):
    rows = re.search(r"^kind +metric.*?(?=```)", PAGE, re.M | re.S)[0].splitlines()
    told = json.loads((DOCS / "scenes-eval.json").read_text("utf-8"))
    assert (told["suite"], told["model"]["name"], told["limit"]) == ("scenes", "demo", 60)
    assert told["settings"]["max_new_tokens"] == SUITES["scenes"].max_new_tokens
    evaluation = Evaluation(
        suite="scenes",
        metrics=SUITES["scenes"].metrics,
        scores=tuple(Score(**each) for each in told["scores"]),
        cases=(),
        about=told,
        folder=Path("runs"),
    )
    command._tell(evaluation)
    printed = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in printed] == rows


def test_a_command_of_the_page_runs_for_real_on_a_folder_of_a_published_set(
    tiny, tmp_path, monkeypatch, capsys
):
    """As shown but for the model, which is tiny, and a folder in place of the download."""
    line = "gemma3vl evaluate 4b-it docvqa --limit 500"
    assert line in PAGE
    monkeypatch.chdir(tmp_path)
    published.dataset(published.DOCVQA).save_to_disk("set")
    words = line.replace("4b-it", str(tiny)).split()
    quick = ["--weights", "fp32", "--crops", "off", "--max-new-tokens", "4"]
    monkeypatch.setattr(sys, "argv", [*words, "--data", "set", *quick])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    (run,) = Path("runs", "evaluate").iterdir()
    assert run.name == f"docvqa-{tiny.name}" and str(run / "report.html") in printed.err
    told = json.loads((run / "results.json").read_text("utf-8"))
    assert told["model"]["weights"] == "fp32" and told["data"]["items"] == 2
    assert told["tokens"]["image_tokens"] > 0 and not any(s["failed"] for s in told["scores"])
    answers = [json.loads(each)["text"] for each in (run / "scored.jsonl").open(encoding="utf-8")]
    assert len(answers) == 2 and all(answers)
    rows = {row.split()[0]: row.split()[1:4] for row in printed.out.splitlines()}
    assert rows["all"] == ["anls", "2", f"{told['scores'][0]['value']:.1%}"]
