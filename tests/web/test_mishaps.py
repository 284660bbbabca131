"""What goes wrong between a browser and its server: told clearly, and nothing written is lost."""

import pytest

from gemma3vl_app.errors import EngineError, MemoryLimitError
from gemma3vl_app.store import ConversationStore
from gemma3vl_app.testing.scripted import ScriptedBackend
from gemma3vl_app.webui import page as page_module

pytestmark = pytest.mark.web


def test_a_question_asked_without_a_network_is_told_and_there_again_afterwards(open_page, pictures):
    backend = ScriptedBackend(["Yes."])
    page = open_page(backend)
    page.send("Before")
    page.wait_for_answer()
    page.attach(pictures[0])
    page.page.context.set_offline(True)
    page.send("Am I heard?")
    page.page.get_by_text("Connection to the server was lost").wait_for()
    assert page.box.input_value() == "Am I heard?"
    with page.page.expect_navigation(timeout=20_000):  # the page finds the server by itself
        page.page.context.set_offline(False)
    page.wait_for_messages(2)
    page.wait_for_items(1)
    assert page.box.input_value() == "Am I heard?"
    page.box.press("Enter")
    page.wait_for_messages(4)
    page.wait_for_answer()
    assert page.asked() == ["Before", "Am I heard?"]
    assert [picture.name for picture in backend.requests[-1].conversation.pictures] == ["red.png"]


def test_what_was_written_and_not_sent_outlasts_a_reload(open_page, pictures):
    page = open_page(ScriptedBackend(["Yes."]))
    page.attach(*pictures)
    page.box.fill("Half a question")
    page.page.reload()
    page.wait_for_items(2)
    assert page.box.input_value() == "Half a question"
    page.box.press("Enter")
    page.wait_for_answer()
    page.page.reload()
    page.wait_for_messages(2)
    assert page.box.input_value() == ""
    assert page.names() == []


def test_what_is_written_while_an_answer_fails_stays_behind_the_question_that_comes_back(open_page):
    backend = ScriptedBackend(["Well "] * 3, seconds_per_chunk=0.5, error=EngineError("It broke."))
    page = open_page(backend)
    page.send("First question")
    page.wait_for_text()
    page.box.fill("and the next")
    page.wait_for_line("It broke.")
    page.page.wait_for_function("document.querySelector('#composer textarea').value.length > 15")
    assert page.box.input_value() == "First question\nand the next"


def test_a_draft_goes_along_to_a_new_conversation(open_page, pictures):
    page = open_page(ScriptedBackend(["Yes."]))
    page.send("Hello")
    page.wait_for_answer()
    page.attach(pictures[0])
    page.box.fill("My draft")
    page.page.locator("#shelf .new").click()
    page.wait_for_messages(0)
    page.page.wait_for_timeout(300)
    assert (page.box.input_value(), page.names()) == ("My draft", ["red.png"])


def test_a_setting_that_makes_no_sense_takes_no_pictures_away(open_page, pictures):
    page = open_page(ScriptedBackend(["Yes."]))
    page.attach(*pictures)
    page.page.locator("#settings button").first.click()
    page.page.get_by_label("Temperature").fill("warm")
    page.page.get_by_label("Temperature").blur()
    page.box.press_sequentially("Which?")
    page.page.locator("#composer .note", has_text="temperature").wait_for()
    assert page.names() == ["red.png", "blue.png"]


def test_a_full_queue_is_told_and_the_question_stays(open_page, monkeypatch, browser):
    monkeypatch.setattr(page_module, "ANSWERS_AT_ONCE", 1)
    monkeypatch.setattr(page_module, "WAITING_AT_MOST", 1)
    backend = ScriptedBackend(["word "] * 100, seconds_per_chunk=0.1)
    page = open_page(backend)
    other = type(page)(browser.new_page(), page.page.url)
    page.send("First")
    page.wait_for_text()
    page.page.evaluate(  # a second one waits, as from another browser
        """async () => { for (const name of ["a", "b"]) await fetch("gradio_api/call/ask",
            { method: "POST", headers: { "Content-Type": "application/json" },
              body: JSON.stringify({ data: [name, []] }) }); }"""
    )
    other.send("Third")
    other.page.get_by_text("currently busy. Please try again").first.wait_for()
    assert other.box.input_value() == "Third"
    other.page.close()


def test_a_page_that_is_opened_while_the_queue_is_full_shows_what_there_is(
    open_page, monkeypatch, tmp_path
):
    monkeypatch.setattr(page_module, "WAITING_AT_MOST", 1)
    with ConversationStore(tmp_path / "kept") as store:
        page = open_page(ScriptedBackend(["Yes."]), store)
        page.send("Hello")
        page.wait_for_answer()
        page.page.wait_for_function("location.search.includes('c=')")
        monkeypatch.setattr("gradio.queueing.Queue.__len__", lambda self: 1)
        page.page.reload()
        page.wait_for_messages(2)
        assert page.said() == ["Yes."]
        assert page.titles() == ["Hello"]
        page.box.fill("A draft")


def test_out_of_memory_is_told_with_advice_and_the_question_comes_back(open_page, pictures):
    error = MemoryLimitError("No memory is left for this answer. Send fewer pictures.")
    page = open_page(ScriptedBackend([], error=error))
    page.attach(*pictures)
    page.send("Which?")
    page.wait_for_line("Send fewer pictures.")
    page.wait_for_items(2)
    assert page.box.input_value() == "Which?"


def test_a_file_that_is_too_large_is_told_and_the_rest_stays(open_page, tmp_path, pictures):
    large = tmp_path / "large.png"
    large.write_bytes(b"\0" * (26 << 20))
    page = open_page(ScriptedBackend())
    page.box.fill("Which?")
    page.page.locator("#composer input[type=file]").set_input_files([str(large), str(pictures[0])])
    note = page.page.locator("#composer .note", has_text="25 MB")
    note.wait_for()
    assert "large.png" in note.inner_text()
    page.wait_for_items(1)
    assert page.box.input_value() == "Which?"


def test_more_pictures_than_a_turn_takes_are_told(open_page, pictures):
    page = open_page(ScriptedBackend())
    page.page.locator("#composer input[type=file]").set_input_files([str(pictures[0])] * 21)
    page.page.locator("#composer .note", has_text="20").wait_for(timeout=60_000)
