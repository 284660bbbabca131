"""Conversations on the page: branches, reloads, restarts, the list, and whose they are."""

import json
import time

import pytest

from gemma3vl_app.store import ConversationStore
from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.web.conftest import ChatPage, served

pytestmark = pytest.mark.web


@pytest.fixture
def store(tmp_path):
    with ConversationStore(tmp_path / "kept") as store:
        yield store


def test_a_reload_during_an_answer_shows_it_still_growing(open_page):
    backend = ScriptedBackend([f"w{k} " for k in range(60)], seconds_per_chunk=0.1)
    page = open_page(backend)
    page.send("Go")
    page.wait_for_text()
    page.page.reload()
    page.wait_for_text()
    early = page.said()[-1]
    assert backend.running == 1
    assert page.wait_for_answer(20).split() == [f"w{k}" for k in range(60)]
    assert 0 < len(early) < len(page.said()[-1])
    assert len(backend.requests) == 1  # nothing was asked again


def test_a_reload_brings_back_messages_and_pictures(open_page, pictures):
    page = open_page(ScriptedBackend(["Both."]))
    page.attach(*pictures)
    page.send("Which?")
    page.wait_for_answer()
    page.page.reload()
    page.wait_for_messages(2)
    assert (page.asked(), page.said()) == (["Which?"], ["Both."])
    widths = page.page.evaluate(
        "Promise.all([...document.querySelectorAll('#conversation .user img')]"
        ".map(async (each) => { await each.decode(); return each.naturalWidth; }))"
    )
    assert widths == [300, 200]


def test_an_edited_question_is_a_branch_with_a_way_back(open_page):
    backend = ScriptedBackend()  # says what it is told
    page = open_page(backend)
    page.send("first")
    page.wait_for_answer()
    page.edit(0, "second")
    page.page.locator("#conversation .assistant", has_text="second").wait_for()
    page.wait_for_answer()
    assert page.asked() == ["second"]
    page.press("Earlier version", message=0)
    page.page.locator("#conversation .assistant", has_text="first").wait_for()
    assert page.asked() == ["first"]
    page.send("more")
    page.wait_for_messages(4)
    page.wait_for_answer()
    texts = [message.text for message in backend.requests[-1].conversation.messages]
    assert texts == ["first", "first", "more"]


def test_an_answer_is_given_again_and_the_old_one_stays(open_page):
    backend = ScriptedBackend(["Yes."])
    page = open_page(backend)
    page.send("Really?")
    page.wait_for_answer()
    backend._chunks = ["No."]
    page.press("Answer again")
    page.page.locator("#conversation .assistant", has_text="No.").wait_for()
    page.wait_for_answer()
    page.press("Earlier version")
    page.page.locator("#conversation .assistant", has_text="Yes.").wait_for()


def test_a_question_is_taken_back_into_the_box_with_its_pictures(open_page, pictures):
    backend = ScriptedBackend(["Yes."])
    page = open_page(backend)
    page.attach(pictures[0])
    page.send("Is it red?")
    page.wait_for_answer()
    page.press("Take back", message=0)
    page.wait_for_messages(0)
    page.wait_for_items(1)
    assert page.box.input_value() == "Is it red?"
    page.send("Is it blue?")
    page.wait_for_answer()
    first, second = (request.conversation.pictures for request in backend.requests)
    assert first == second  # the very same pixels: the tower's work is used again


def test_an_answer_that_was_cut_is_gone_on_with(open_page):
    backend = ScriptedBackend(["one ", "two ", "three"])
    page = open_page(backend)
    page.page.locator("#settings button").first.click()
    page.page.get_by_label("Longest answer").fill("1")
    page.page.get_by_label("Longest answer").blur()
    page.send("Count")
    page.wait_for_answer()
    page.page.get_by_label("Longest answer").fill("")
    page.page.get_by_label("Longest answer").blur()
    page.page.get_by_role("button", name="Go on").click()
    page.page.locator("#conversation .assistant", has_text="three").wait_for()
    assert len(page.said()) == 1


def test_conversations_outlast_the_server(browser, store):
    backend = ScriptedBackend(["Yes."])
    context = browser.new_context()
    with served(backend, store) as address:
        page = ChatPage(context.new_page(), address)
        page.send("Remember me")
        page.wait_for_answer()
        kept = page.page.url
        port = int(address.rsplit(":", 1)[1])
    with served(backend, store, port=port) as address:
        page.page.goto(kept)
        page.wait_for_messages(2)
        assert page.titles() == ["Remember me"]
        page.send("And again")
        page.wait_for_messages(4)
        page.wait_for_answer()
    texts = [message.text for message in backend.requests[-1].conversation.messages]
    assert texts == ["Remember me", "Yes.", "And again"]
    context.close()


def test_a_page_that_was_open_when_the_server_was_restarted_goes_on(browser, store):
    backend = ScriptedBackend(["Yes."])
    context = browser.new_context()
    with served(backend, store) as address:
        page = ChatPage(context.new_page(), address)
        page.send("Before")
        page.wait_for_answer()
        port = int(address.rsplit(":", 1)[1])
    with served(backend, store, port=port):
        page.page.wait_for_timeout(1000)
        page.send("After")
        page.wait_for_messages(4)
    context.close()
    texts = [message.text for message in backend.requests[-1].conversation.messages]
    assert texts == ["Before", "Yes.", "After"]


def test_the_list_opens_renames_pins_and_finds_conversations(open_page, store):
    page = open_page(ScriptedBackend(), store)
    for text in ("about cats", "about dogs"):
        page.page.locator("#shelf .new").click()
        page.wait_for_messages(0)
        page.send(text)
        page.wait_for_messages(2)
        page.wait_for_answer()
    assert page.titles() == ["about dogs", "about cats"]

    page.page.locator("#shelf .title", has_text="about cats").click()
    page.page.locator("#conversation .user", has_text="about cats").wait_for()

    page.menu("about cats", "Keep at the top")
    page.page.locator("#shelf .title", has_text="★ about cats").wait_for()
    assert page.titles() == ["★ about cats", "about dogs"]

    page.menu("about dogs", "Rename")
    page.page.locator("#shelf .rename").fill("Hounds")
    page.page.locator("#shelf .rename").press("Enter")
    page.page.locator("#shelf .title", has_text="Hounds").wait_for()

    page.page.locator("#shelf .search").fill("dogs")  # is in its messages
    page.page.wait_for_function("document.querySelectorAll('#shelf .entry').length === 1")
    assert page.page.locator("#shelf mark").inner_text() == "dogs"


def test_a_deleted_conversation_is_gone_with_its_pictures(open_page, store, pictures):
    page = open_page(ScriptedBackend(["Yes."]), store)
    page.attach(pictures[0])
    page.send("Forget me")
    page.wait_for_answer()
    image = page.page.locator("#conversation .user img").evaluate("each => each.src")
    assert page.page.request.get(image).ok
    page.menu("Forget me", "Delete")
    page.page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    page.wait_for_messages(0)
    assert page.titles() == []
    assert not page.page.request.get(image).ok
    assert "?c=" not in page.page.url


def test_a_conversation_is_brought_out_and_in_again(open_page, store, pictures, tmp_path):
    page = open_page(ScriptedBackend(["Yes."]), store)
    page.attach(pictures[0])
    page.send("Take me along")
    page.wait_for_answer()
    with page.page.expect_download() as download:
        page.menu("Take me along", ".zip")
    file = tmp_path / "out.chat.zip"
    download.value.save_as(file)
    page.menu("Take me along", "Delete")
    page.page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    page.wait_for_messages(0)
    page.page.locator("#shelf input[type=file]").set_input_files(str(file))
    page.wait_for_messages(2)
    assert page.asked() == ["Take me along"]
    assert page.page.locator("#conversation .user img").count() == 1
    assert page.titles() == ["Take me along"]


@pytest.mark.parametrize(
    ("kind", "start"), [("HTML", b"<!doctype"), ("Markdown", b"PK"), ("Notebook", b"PK")]
)
def test_a_conversation_is_exported_for_others(open_page, store, kind, start):
    page = open_page(ScriptedBackend(["Yes."]), store)
    page.send("Show me")
    page.wait_for_answer()
    with page.page.expect_download() as download:
        page.menu("Show me", kind)
    data = download.value.path().read_bytes()
    assert data.lower().startswith(start.lower())


def test_a_second_browser_sees_nothing_of_the_first(open_page, store, browser):
    page = open_page(ScriptedBackend(["Yes."]), store)
    page.send("My secret")
    page.wait_for_answer()
    stranger = ChatPage(browser.new_context().new_page(), page.page.url)  # even with its address
    assert stranger.said() == stranger.asked() == stranger.titles() == []
    stranger.wait_for_line("no such conversation")
    stranger.page.context.close()


def test_a_stranger_cannot_name_files_of_the_server(open_page, tmp_path, pictures):
    backend = ScriptedBackend(["Yes."])
    page = open_page(backend)
    body = {}
    page.page.on(
        "request",
        lambda r: body.update(r.post_data_json or {}) if "queue/join" in r.url else None,
    )
    page.send("Hello")
    page.wait_for_answer()
    page.page.wait_for_timeout(300)
    for file in (str(pictures[0]), "/etc/passwd", "../../etc/passwd", 7, None):
        event = {"text": "What is it?", "files": [file], "crops": "off"}
        sent = page.page.evaluate(
            """async ([fn, event]) => (await fetch("gradio_api/queue/join", { method: "POST",
               headers: { "content-type": "application/json" },
               body: JSON.stringify(fn) })).status""",
            [{**body, "fn_index": _submit(page), "data": [None] * 9, "event_data": event}, event],
        )
        assert sent == 200
    time.sleep(1)
    assert len(backend.requests) == 1


def _submit(page) -> int:
    """Return the number of gradio's function that sends a draft."""
    config = json.loads(page.page.request.get(page.page.url.split("?")[0] + "config").text())
    composer = next(
        each["id"] for each in config["components"] if each["props"].get("elem_id") == "composer"
    )
    return next(
        each["id"]
        for each in config["dependencies"]
        if [composer, "submit"] in [list(target) for target in each["targets"]]
    )
