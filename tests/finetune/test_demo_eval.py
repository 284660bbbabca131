import json
from dataclasses import replace
from itertools import islice

import pytest

from gemma3vl_app.finetune import demo_eval
from gemma3vl_app.scenes.items import items
from gemma3vl_app.testing import ScriptedBackend


def test_a_word_is_wrong_by_some_characters():
    assert demo_eval.character_errors("word ", "word") == 0
    assert demo_eval.character_errors("wordxy", "word") == 2
    assert demo_eval.character_errors("rd", "word") == 2
    assert demo_eval.character_errors("", "word") == 4


def test_what_is_read_is_scored_by_characters_too(needs_fonts):
    with ScriptedBackend([""]) as backend:
        score, _ = demo_eval.evaluate(backend, "read", 3)
    assert (score.right, score.character_errors, score.met) == (0, 1.0, False)


def test_drawings_of_paint_programs_are_right_when_each_place_is_right_too():
    wanted = json.loads((demo_eval.PAINT / "pictures.json").read_text())
    files = {p.name for p in demo_eval.PAINT.iterdir() if p.suffix in (".png", ".jpg")}
    assert set(wanted) == files and len(files) == 20
    for answer, right in (("A blue circle in the middle.", 2), ("A blue circle at the top.", 0)):
        with ScriptedBackend([answer]) as backend:
            score, wrong = demo_eval.evaluate_paint(backend)
        assert (score.right, score.items, len(wrong)) == (right, 20, 20 - right)


def test_the_lower_bound_is_that_of_wilson():
    assert demo_eval.lower_bound(475, 500) == pytest.approx(0.9272, abs=1e-4)
    assert demo_eval.lower_bound(0, 500) == pytest.approx(0.0, abs=1e-9)


def test_evaluation_asks_each_item_and_counts_what_is_right():
    twos = sum(item.turn.answer == "Two." for item in islice(items("count"), 60))
    assert 0 < twos < 60
    with ScriptedBackend(["Two."]) as backend:
        score, wrong = demo_eval.evaluate(backend, "count", 60)
        assert len(backend.requests) == 60
    assert (score.right, score.items, score.met) == (twos, 60, False)
    assert len(wrong) == 60 - twos


def test_the_table_tells_misses():
    score = demo_eval.Score("count", 475, 500, 0.927, 0.95, met=False)
    text = demo_eval.table([score, replace(score, kind="shape", met=True)])
    assert "| count | 95.0% of 500 | 92.7% | 95% | missed |" in text
    assert "| shape | 95.0% of 500 | 92.7% | 95% | met |" in text
    assert json.dumps(text)
