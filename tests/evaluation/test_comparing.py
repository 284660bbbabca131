"""Two runs of the same items, compared."""

import json

import pytest

import gemma3vl_app as gv
from gemma3vl_app.errors import EvaluationError
from gemma3vl_app.evaluation.comparing import compare
from tests.evaluation.answering import AnsweringBackend, animals, write_jsonl

RIGHT = {f"number {n}?": f"animal {n}" for n in range(60)}


def run(folder, name, right, *, suite="docvqa", count=60, **options):
    answers = dict(list(RIGHT.items())[:right])
    data = animals(folder, count)
    gv.evaluate(AnsweringBackend(answers), suite, data=data, out=folder / name, **options)
    return folder / name


def test_a_clear_gain_is_certain_and_a_run_does_not_differ_from_itself(tmp_path):
    a, b = run(tmp_path, "a", 20), run(tmp_path, "b", 45)
    found = compare(a, b)
    whole, even, odd = found.changes
    assert [change.kind for change in found.changes] == ["all", "even", "odd"]
    assert whole.items == 60 and whole.gained == pytest.approx(25 / 60)
    assert whole.gained == pytest.approx(whole.b - whole.a)
    assert whole.interval[0] < whole.gained < whole.interval[1] and whole.is_certain
    assert even.items == odd.items == 30
    assert "(a)" in found.a and "scripted" in found.b
    same = compare(a, a).changes[0]
    assert (same.gained, same.interval, same.is_certain) == (0.0, None, False)


def test_one_item_more_is_not_certain(tmp_path):
    change = compare(run(tmp_path, "a", 30), run(tmp_path, "b", 31)).changes[0]
    assert change.gained == pytest.approx(1 / 60) and not change.is_certain


def test_only_items_of_both_runs_count(tmp_path):
    a, b = run(tmp_path, "a", 30, limit=10), run(tmp_path, "b", 30)
    assert compare(a, b).changes[0].items == 10


def test_settings_that_differ_are_told(tmp_path):
    a = run(tmp_path, "a", 30)
    assert compare(a, run(tmp_path, "b", 30)).notes == ()
    other = run(tmp_path, "c", 30, crops="off", max_new_tokens=5)
    assert compare(a, other).notes == (
        "max_new_tokens is 32 in a, 5 in b",
        "crops is auto in a, off in b",
    )


def test_a_kind_called_all_is_not_all_kinds(tmp_path):
    rows = [
        {"picture": "a.png", "question": f"number {n}?", "answer": "x", "kind": kind}
        for n, kind in enumerate(["all", "b", "b"])
    ]
    data = write_jsonl(tmp_path, *rows)
    gv.evaluate(AnsweringBackend(), "docvqa", data=data, out=tmp_path / "a")
    found = compare(tmp_path / "a", tmp_path / "a").changes
    assert [(change.kind, change.items) for change in found] == [
        ("all", 3),
        ("all (kind)", 1),
        ("b", 2),
    ]


def test_runs_of_other_things_are_not_compared(tmp_path):
    a = run(tmp_path, "a", 9)
    with pytest.raises(EvaluationError, match="differ in their suite: 'docvqa' and 'vqav2'"):
        compare(a, run(tmp_path, "b", 9, suite="vqav2"))
    with pytest.raises(EvaluationError, match="different data"):
        compare(a, run(tmp_path / "other", "c", 9, count=9))


@pytest.mark.parametrize("spoiled", ["results.json", "scored.jsonl"])
def test_a_folder_without_a_finished_run_is_told(tmp_path, spoiled):
    a, b = run(tmp_path, "a", 9), run(tmp_path, "b", 9)
    for text in ("", "[]", json.dumps({"suite": "docvqa"}), "{"):
        (b / spoiled).write_text(text or "\n")
        with pytest.raises(EvaluationError, match="'b' holds no finished run"):
            compare(a, b)
    (b / spoiled).unlink()
    with pytest.raises(EvaluationError, match="'b' holds no finished run"):
        compare(a, b)
