"""The page in a browser, on the scripted backend."""

import time

import pytest

from gemma3vl_app.errors import EngineError
from gemma3vl_app.testing.scripted import ScriptedBackend
from gemma3vl_app.webui.component import asset

pytestmark = pytest.mark.web

ATTACK = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>"
    "<svg onload=alert(3)> ![x](http://evil.test/a.png) <b>bold</b> &lt;i&gt;"
)


def test_two_pictures_and_a_text_arrive_in_order(open_page, pictures):
    backend = ScriptedBackend(["Both."])
    page = open_page(backend)
    page.attach(*pictures)
    page.send("Which one is red?")
    assert page.wait_for_answer() == "Both."
    (message,) = backend.requests[0].conversation.messages
    assert [picture.name for picture in message.pictures] == ["red.png", "blue.png"]
    assert [(picture.width, picture.height) for picture in message.pictures] == [
        (300, 200),
        (200, 300),
    ]
    assert message.text == "Which one is red?"
    assert message.parts[-1] is not message.pictures[-1]
    assert page.page.locator("#conversation .user img").count() == 2


def test_a_follow_up_brings_the_whole_conversation_and_more_pictures(open_page, pictures):
    backend = ScriptedBackend(["Yes."])
    page = open_page(backend)
    page.attach(pictures[0])
    page.send("First?")
    page.wait_for_answer()
    page.attach(pictures[1])
    page.send("Second?")
    page.wait_for_messages(4)
    page.wait_for_answer()
    second = backend.requests[1].conversation
    assert [message.text for message in second.messages] == ["First?", "Yes.", "Second?"]
    assert [picture.name for picture in second.pictures] == ["red.png", "blue.png"]
    assert backend.requests[0].session == backend.requests[1].session != ""


def test_the_text_grows_while_the_answer_is_written(open_page):
    page = open_page(ScriptedBackend([f"w{k} " for k in range(10)], seconds_per_chunk=0.15))
    page.send("Go")
    lengths = []
    while "tokens/s" not in page.line:  # of the first answer
        lengths.append(len("".join(page.said())))
        time.sleep(0.1)
    assert len({length for length in lengths if length}) >= 4
    assert lengths == sorted(lengths)
    assert page.said()[-1].split() == [f"w{k}" for k in range(10)]


def test_stop_ends_the_answer_within_a_second_and_keeps_what_was_said(open_page):
    backend = ScriptedBackend(["word "] * 200, seconds_per_chunk=0.1)
    page = open_page(backend)
    page.send("Go")
    page.wait_for_text()
    page.stop()
    started = time.monotonic()
    while backend.running:
        assert time.monotonic() - started < 1
        time.sleep(0.01)
    page.wait_for_line("Stopped")
    assert 1 <= len(page.said()[-1].split()) < 50


def test_a_new_conversation_begins_empty_while_the_old_one_is_answered(open_page):
    backend = ScriptedBackend(["word "] * 50, seconds_per_chunk=0.1)
    page = open_page(backend)
    page.send("Go")
    page.wait_for_text()
    page.page.locator("#shelf .new").click()
    page.wait_for_messages(0)
    time.sleep(0.5)  # time enough for a late piece of the old answer to show up
    assert page.said() == []
    page.send("Again")
    page.wait_for_text()
    assert [message.text for message in backend.requests[1].conversation.messages] == ["Again"]


def test_a_value_that_comes_late_is_not_drawn(open_page):
    page = open_page(ScriptedBackend(["Yes."]))
    drawn = page.page.evaluate(
        asset("elements.js")
        + """
        [["a", 0], ["a", 2], ["a", 1], ["b", 0]].map((order) => latest({ order }).order.join(""))
        """
    )
    assert drawn == ["a0", "a2", "a2", "b0"]


def test_a_failure_is_told_and_the_text_is_not_lost(open_page):
    page = open_page(ScriptedBackend(["Well "], error=EngineError("The engine <b>broke</b>.")))
    page.send("My long question")
    page.wait_for_line("The engine <b>broke</b>.")
    page.page.wait_for_function("document.querySelector('#composer textarea').value != ''")
    assert page.box.input_value() == "My long question"
    assert page.said() == []


def test_a_file_that_is_no_picture_is_told_at_once_and_nothing_is_lost(
    open_page, tmp_path, pictures
):
    broken = tmp_path / "holiday.png"
    broken.write_bytes(b"this is not a picture")
    backend = ScriptedBackend()
    page = open_page(backend)
    page.box.fill("What is this?")
    page.page.locator("#composer input[type=file]").set_input_files([str(broken), str(pictures[0])])
    note = page.page.locator("#composer .note")
    note.wait_for()
    assert "holiday.png" in note.inner_text()
    assert page.names() == ["red.png"]  # the other one is taken
    assert page.box.input_value() == "What is this?"
    time.sleep(1)  # longer than the page waits after the last key before it counts the words
    assert note.is_visible()


def test_markup_stays_text_and_nothing_foreign_is_loaded(open_page):
    page = open_page(ScriptedBackend())  # says what it is told: the model's text is the attack too
    page.send(ATTACK)
    assert page.wait_for_answer() == ATTACK
    assert page.asked()[-1].strip() == ATTACK
    time.sleep(0.5)
    assert page.dialogs == []
    assert page.page.locator("#conversation .assistant .text :is(script, img, svg, b)").count() == 0
    assert page.foreign == []


def test_an_example_is_asked_with_one_click(open_page):
    backend = ScriptedBackend(["Red."])
    page = open_page(backend)
    page.page.get_by_text("What is in the picture?").click()
    assert page.wait_for_answer() == "Red."
    assert len(backend.requests[0].conversation.pictures) == 1


def test_the_page_says_which_model_it_holds_and_what_that_knows(open_page):
    page = open_page(ScriptedBackend())
    head = page.page.locator("#head").inner_text()
    assert "scripted" in head
    assert "It repeats what you write." in head
    assert page.page.title().startswith("scripted")


def test_two_tabs_are_two_conversations(open_page, browser):
    backend = ScriptedBackend(["Yes."])
    page = open_page(backend)
    other = type(page)(browser.new_page(), page.page.url)
    page.send("one")
    page.wait_for_answer()
    other.send("two")
    other.wait_for_answer()
    other.page.close()
    assert [m.text for m in backend.requests[1].conversation.messages] == ["two"]
    assert backend.requests[0].session != backend.requests[1].session


def test_closing_the_tab_ends_its_answer(open_page):
    backend = ScriptedBackend(["word "] * 600, seconds_per_chunk=0.05)
    page = open_page(backend)
    page.send("Go")
    page.wait_for_text()
    page.page.close()
    started = time.monotonic()
    while backend.running:
        assert time.monotonic() - started < 25  # it has 15 s to come back
        time.sleep(0.05)


def test_quiet_and_error_lines_stand_out_in_the_dark(open_page):
    page = open_page(ScriptedBackend())
    page.page.emulate_media(color_scheme="dark")
    page.page.reload()
    page.wait_until_loaded()
    colour = (
        "getComputedStyle(document.querySelector('#line p')).color.match(/[0-9]+/g).map(Number)"
    )
    assert min(page.page.evaluate(colour)) > 140  # light text
