"""The report: what it shows, and that other people's text stays text."""

import re

import pytest

import gemma3vl_app as gv
from gemma3vl_app.evaluation import report
from tests.evaluation.answering import AnsweringBackend, animals, write_jsonl

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[31m"


def page_of(folder, backend, suite, data):
    gv.evaluate(backend, suite, data=data, out=folder)
    return (folder / report.REPORT).read_text(encoding="utf-8")


def test_it_shows_scores_by_kind_the_worst_cases_with_pictures_and_how_it_was_measured(tmp_path):
    backend = AnsweringBackend({"number 0?": "animal 0", "number 2?": "animal x"})
    page = page_of(tmp_path / "run", backend, "docvqa", animals(tmp_path))
    assert "<h1>docvqa: 31.2% anls</h1>" in page
    assert page.count("<tr") == 1 + 3  # the head, all, even, odd
    assert page.count('class="case"') == 5 == page.count("data:image/png;base64,")
    assert "animal 3" in page and "I do not know" in page
    assert "scripted" in page and "at most 32 tokens" in page


def test_the_worst_of_each_kind_come_first_in_turns_and_no_more_than_fit(tmp_path):
    """Item n has n % 10 of 20 characters wrong; those of kind "b" are the last ten of thirty."""
    reference = "x" * 20
    rows = [
        {
            "id": f"i{n}",
            "picture": "a.png",
            "question": f"What is {n}?",
            "answer": reference,
            "kind": "b" if n >= 20 else "a",
        }
        for n in range(30)
    ]
    said = {f"is {n}?": "o" * (n % 10) + "x" * (20 - n % 10) for n in range(30)}
    backend, data = AnsweringBackend(said), write_jsonl(tmp_path, *rows)
    done = gv.evaluate(backend, "docvqa", data=data, out=tmp_path / "run")
    of_a = [f"i{n}" for wrong in range(9, 0, -1) for n in (wrong, wrong + 10)]
    of_b = [f"i{20 + wrong}" for wrong in range(9, 0, -1)]
    in_turns = [id for pair in zip(of_a, of_b, strict=False) for id in pair] + of_a[len(of_b) :]
    assert [case.item.id for case in done.worst(99)] == in_turns
    assert [case.item.id for case in done.worst(5)] == in_turns[:5]
    page = (tmp_path / "run" / report.REPORT).read_text(encoding="utf-8")
    shown = re.findall(r"<h3><bdi>(\w+) · (\w)</bdi>\s+<span class=\"score\">([\d.]+)%", page)
    assert [id for id, *_ in shown] == in_turns[: report.WORST_SHOWN] != in_turns
    assert shown[:3] == [("i9", "a", "55.0"), ("i29", "b", "55.0"), ("i19", "a", "55.0")]
    assert page.count("data:image/png;base64,") == report.WORST_SHOWN == 24


def test_other_peoples_text_is_text(tmp_path):
    row = {"id": EVIL, "picture": "a.png", "question": EVIL, "answer": EVIL, "kinds": [EVIL, "b"]}
    page = page_of(
        tmp_path / "run", AnsweringBackend({"": EVIL + "."}), "vqav2", write_jsonl(tmp_path, row)
    )
    tags = set(re.findall(r"<([a-z]+)", page))
    assert "script" not in tags and not re.search(r"<[^>]*onerror", page)
    assert page.count("&lt;script&gt;") >= 4
    assert "\x1b" not in page
    assert re.findall(r'src="(?!data:image/)', page) == []
    assert "default-src 'none'" in page


def test_items_without_an_answer_are_listed_with_their_reasons(tmp_path):
    data = animals(tmp_path)
    (tmp_path / "2.png").unlink()
    page = page_of(tmp_path / "run", AnsweringBackend(), "docvqa", data)
    assert "1 item without an answer" in page
    assert "<bdi>2</bdi>: Picture &#x27;2.png&#x27; was not found." in page
    assert "1 failed, counted as wrong" in page


@pytest.mark.parametrize(
    ("limit", "told"),
    [(None, "6 items"), (1_000, "6 items"), (4, "6 items, 4 of them drawn by seed 0")],
)
def test_it_tells_how_many_items_were_drawn_of_how_many(tmp_path, limit, told):
    data = animals(tmp_path)
    gv.evaluate(AnsweringBackend(), "docvqa", data=data, out=tmp_path / "run", limit=limit)
    page = (tmp_path / "run" / report.REPORT).read_text(encoding="utf-8")
    assert f"<bdi>data.jsonl, {told}</bdi>" in page


def test_a_picture_that_has_gone_meanwhile_is_told(tmp_path, monkeypatch):
    backend, data = AnsweringBackend(), animals(tmp_path, 2)
    gv.evaluate(backend, "docvqa", data=data, out=tmp_path / "run")
    (tmp_path / "1.png").unlink()
    page = page_of(tmp_path / "run", backend, "docvqa", data)
    assert "Picture &#x27;1.png&#x27; was not found." in page


def test_error_rates_say_that_less_is_better_and_show_the_worst_first(tmp_path):
    rows = [{"picture": f"{n}.png", "text": text} for n, text in enumerate(("one", "two", "six"))]
    backend = AnsweringBackend({"": "two"})
    page = page_of(tmp_path / "run", backend, "reading", write_jsonl(tmp_path, *rows))
    assert "Less is better." in page
    assert page.count('class="case"') == 2  # the one that is right is not shown


@pytest.mark.parametrize("said", ["", " \n"])
def test_an_empty_answer_is_told_as_one(tmp_path, said):
    page = page_of(tmp_path / "run", AnsweringBackend({"": said}), "docvqa", animals(tmp_path, 1))
    assert "(nothing)" in page
