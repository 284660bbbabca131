"""docs/evaluation.md says what the code does."""

import re
from pathlib import Path

from gemma3vl_app.evaluation.intervals import RESAMPLES
from gemma3vl_app.evaluation.suites import SUITES

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


def test_the_number_of_resamples_is_that_of_the_code():
    assert f"{RESAMPLES:,} times" in PAGE


def test_the_printed_table_is_of_the_command_above_it():
    rows = re.search(r"^kind +metric.*?(?=```)", PAGE, re.M | re.S)[0].splitlines()
    counts = {row.split()[0]: int(row.split()[2]) for row in rows[1:]}
    assert counts.pop("all") == 60 == sum(counts.values())
