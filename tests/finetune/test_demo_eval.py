import json
from dataclasses import replace

import pytest

from gemma3vl_app.finetune import demo_eval
from gemma3vl_app.finetune.scenes import HELD_OUT_PAIRS
from gemma3vl_app.testing import ScriptedBackend


def test_items_are_the_same_every_time_and_half_of_them_show_an_unseen_pair():
    first, second = (list(demo_eval.items("colour", 20)) for _ in range(2))
    assert [item.turn for item in first] == [item.turn for item in second]
    assert [item.pictures for item in first] == [item.pictures for item in second]
    unseen = [any(t.pair in HELD_OUT_PAIRS for t in item.scenes[0].things) for item in first]
    assert 5 <= sum(unseen) <= 15


@pytest.mark.parametrize("kind", [kind for kind in demo_eval.TARGETS if kind != "read"])
def test_every_kind_has_items_and_the_right_answer_counts(kind: str):
    for item in demo_eval.items(kind, 5):
        assert item.turn.kind == kind
        assert item.right(item.turn.answer)
        assert item.right(item.turn.answer.upper().rstrip("."))
        assert not item.right("Something else.")


def test_one_word_is_read_exactly_or_wrong_by_some_characters(needs_fonts):
    for item in demo_eval.items("read", 5):
        word = item.turn.answer
        assert " " not in word
        assert item.right(f"{word} ") and item.character_errors(word) == 0
        assert not item.right(word.swapcase() + "x")
        assert item.character_errors(word + "xy") == item.character_errors(word[2:]) == 2
        assert item.character_errors("") == len(word)


def test_what_is_read_is_scored_by_characters_too(needs_fonts):
    with ScriptedBackend([""]) as backend:
        score, _ = demo_eval.evaluate(backend, "read", 3)
    assert (score.right, score.character_errors, score.met) == (0, 1.0, False)


def test_a_description_is_right_when_it_names_each_thing_and_no_other():
    item = next(demo_eval.items("describe", 1))
    pairs = [f"{' '.join(thing.pair)} on the left" for thing in item.scenes[0].things]
    assert item.right("I see a " + " and a ".join(pairs))
    assert not item.right(" and ".join([*pairs, "red heart in the middle"]))
    assert not item.right(" and ".join(pairs[1:]))


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
    twos = sum(item.turn.answer == "Two." for item in demo_eval.items("count", 60))
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
