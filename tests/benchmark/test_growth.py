"""What the tables of growing cost are made of."""

import pytest

from gemma3vl_app.benchmark import growth
from gemma3vl_app.loading import load_model

HEADS = ["tokens of context", "pictures in a question", "turn", "conversations at once"]


@pytest.mark.slow
def test_each_table_has_a_row_for_each_size(tiny, monkeypatch):
    monkeypatch.setattr(growth, "CONTEXTS", (64, 512))
    monkeypatch.setattr(growth, "TURNS", (1, 2))
    monkeypatch.setattr(growth, "USERS", (1, 2))
    monkeypatch.setattr(growth, "PICTURES", (1, 2))
    tables = list(growth.tables(load_model(tiny, weights="fp32")))
    assert [table[0].split(" | ")[0].strip("| ") for table in tables] == HEADS
    assert all(len(table) == 4 for table in tables)
    turns = tables[2][2:]
    tokens = [int(row.split("|")[2].replace(",", "")) for row in turns]
    assert tokens[1] > tokens[0] + growth.TURN_WORDS
