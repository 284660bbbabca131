"""Values as the last line of a cell: escaped, small, and as plain text in a terminal."""

import re
from pathlib import Path

import pydantic
import pytest
from PIL import Image

import gemma3vl_app as gv
from gemma3vl_app.notebook.displays import shown
from gemma3vl_app.notebook.shown import Shown
from gemma3vl_app.testing import ScriptedBackend

EVIL = "<script>alert(1)</script>\x1b[31m"
RED = Image.new("RGB", (300, 200), "red")


def evil_chat():
    chat = gv.Chat(ScriptedBackend([EVIL]), system=EVIL)
    chat.ask(EVIL, images=[gv.Picture.open(RED, name=EVIL)])
    return chat


def results():
    answer = gv.Answer(EVIL, "stop")
    page = gv.PageReading(EVIL, (answer,))
    items = (gv.BatchItem(file=EVIL, text=EVIL), gv.BatchItem(file="b.png", error=EVIL))
    return [
        *(gv.Caption(answer), gv.Reply(answer), gv.Comparison(answer), page, gv.Reading((page,))),
        *(gv.Extraction(answer, {EVIL: EVIL}), gv.Extraction(answer, [EVIL])),
        gv.BatchReport(items=items, out=Path(EVIL)),
    ]


def values():
    chat = evil_chat()
    plan = gv.LoadPlan(dtype=EVIL, weights=EVIL, reasons=(EVIL,), ways=(EVIL,))
    return [
        *(chat, chat.conversation, chat.conversation.messages[0], chat.conversation.pictures[0]),
        *(gv.Answer(EVIL, "stop"), plan, EVIL),
        *results(),
    ]


@pytest.mark.parametrize("value", values(), ids=lambda value: type(value).__name__)
def test_nothing_that_is_shown_acts(value):
    what = shown(value)
    assert "<script" not in what.html
    assert "&lt;script&gt;" in what.html or isinstance(value, gv.Picture)
    assert "\x1b" not in what.text


def test_a_picture_is_a_thumbnail_with_its_name_and_size():
    noise = Image.effect_noise((3000, 2000), 80).convert("RGB")
    what = shown(gv.Picture.open(noise, name="snow.png"))
    assert "data:image/jpeg;base64," in what.html
    assert len(what.html) < 100_000
    assert what.text == "Picture: snow.png · 3000 x 2000"


def test_a_chat_shows_who_said_what_and_folds_away_what_it_cost():
    chat = gv.Chat(ScriptedBackend(["A red ", "square."]), system="Be brief.")
    chat.ask("What is it?", images=[gv.Picture.open(RED, name="a.png")])
    what = shown(chat)
    assert what.text.splitlines()[:4] == [
        "Chat with scripted",
        "System: Be brief.",
        "You: [a.png · 300 x 200] What is it?",
        "Model: A red square.",
    ]
    assert "<details" in what.html and "tokens in the prompt" in what.html


def test_a_tasks_result_is_its_text_and_what_it_cost():
    what = shown(gv.Caption(gv.Answer(" A red square. ", "length", gv.Usage(9, 0, 0, 4))))
    assert what.text.startswith("A red square.\n\n(cut at the limit · 4 tokens")
    assert "<details" in what.html


def test_pages_that_were_read_stand_below_their_names():
    cut, whole = gv.Answer("One\nTwo", "length"), gv.Answer("Three", "stop")
    reading = gv.Reading((gv.PageReading("a.png", (cut,)), gv.PageReading("b.png", (whole,))))
    assert shown(reading).text == "a.png · cut at the limit\nOne\nTwo\n\nb.png\nThree"


def test_data_is_shown_by_field():
    class Receipt(pydantic.BaseModel):
        shop: str
        items: list[str]

    what = shown(
        gv.Extraction(gv.Answer("{}", "stop"), Receipt(shop="Käse & Co", items=["a", "b"]))
    )
    assert "Käse &amp; Co</td>" in what.html and "items</td>" in what.html
    assert "a\nb</td>" in what.html
    assert '"shop": "Käse & Co"' in what.text


def test_a_folders_report_says_what_came_of_it_and_shows_the_first_answers():
    answered = [gv.BatchItem(file=f"{n:02}.png", text=f"Number {n}") for n in range(25)]
    items = (*answered, gv.BatchItem(file="x.png", error="It is damaged."))
    lines = shown(
        gv.BatchReport(items=items, out=Path("out.csv"), skipped=1, earlier=3, seconds=2)
    ).text
    assert lines.splitlines()[:2] == [
        "26 pictures · 25 answered, 3 of them in earlier runs · 1 failed · 1 file skipped · 2.0 s"
        " · written to out.csv",
        "00.png: Number 0",
    ]
    assert lines.splitlines()[-2:] == ["x.png: It is damaged.", "… and 5 more"]


def test_data_of_a_folder_is_shown_as_data():
    report = gv.BatchReport(items=(gv.BatchItem(file="a.png", value={"colour": "red"}),))
    assert "&quot;colour&quot;: &quot;red&quot;" in shown(report).html


@pytest.mark.notebook
def test_ipython_draws_each_kind_of_value(shell):
    gv._tell_ipython()
    for value in values():
        if not isinstance(value, str):
            data, _ = shell.display_formatter.format(value)
            assert data == shown(value).bundle(), type(value)


def test_an_empty_chat_says_so():
    assert "Nothing has been said yet." in shown(gv.Chat(ScriptedBackend())).text


def test_an_answer_that_was_cut_says_so():
    assert "cut at the limit" in shown(gv.Answer("A red", "length")).text


def test_a_plan_shows_each_device_and_why():
    plan = gv.plan("27b-it", max_memory={"cuda:0": "24GiB", "cpu": "64GiB"})
    what = shown(plan)
    assert "cuda:0: " in what.text and "of 24.0 GiB" in what.text
    assert all(reason in what.text for reason in plan.reasons)
    assert "keys and values, global layers" in what.html


def test_a_plan_that_does_not_fit_shows_the_ways_that_would():
    plan = gv.plan("27b-it", weights="bf16", max_memory={"cuda:0": "8GiB", "cpu": "8GiB"})
    assert not plan.fits
    assert shown(plan).text.startswith("Does not fit")
    assert all(way in shown(plan).text for way in plan.ways)


def test_what_is_shown_is_html_for_notebooks_and_text_for_terminals():
    what = Shown("<b>a</b>", "a")
    assert "<b>a</b>" in what._repr_html_() and repr(what) == "a"
    assert what.bundle() == {"text/html": what._repr_html_(), "text/plain": "a"}


def test_what_stands_between_dollars_is_no_math():
    (wrapper,) = re.findall(r'^<div class="([^"]*)">.*</div>$', shown("$5 and $6")._repr_html_())
    assert wrapper.split() == ["tex2jax_ignore", "mathjax_ignore"]
