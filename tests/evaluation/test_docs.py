"""docs/evaluation.md says what the code does."""

import re
from pathlib import Path

import pytest

import gemma3vl_app as gv
from gemma3vl_app.evaluation.intervals import RESAMPLES
from gemma3vl_app.evaluation.suites import SUITES
from gemma3vl_app.folders.asking import UNWRITTEN
from tests.evaluation import shown
from tests.evaluation.answering import AnsweringBackend, animals

PAGE = Path(__file__).parents[2].joinpath("docs", "evaluation.md").read_text(encoding="utf-8")


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


def test_the_printed_table_is_of_the_command_above_it():
    rows = re.search(r"^kind +metric.*?(?=```)", PAGE, re.M | re.S)[0].splitlines()
    counts = {row.split()[0]: int(row.split()[2]) for row in rows[1:]}
    assert counts.pop("all") == 60 == sum(counts.values())
