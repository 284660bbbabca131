"""A program's own chat in the browser page, while the program goes on."""

import queue
import threading
import urllib.request
from urllib.parse import urlsplit

import pytest

from gemma3vl_app import launching
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError, UnknownConversationError
from gemma3vl_app.launching import launch
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui.library import Library


def status_of(address):
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.status


def test_the_page_is_there_until_it_is_closed():
    chat = Chat(ScriptedBackend())
    with launch(chat, port=7960, open_browser=False) as page:
        assert page.address.startswith("http://127.0.0.1:79") and "/?c=" in page.address
        assert status_of(page.address) == 200
        assert page.address in repr(page) and page.address in page._repr_html_()
    with pytest.raises(OSError):
        status_of(page.address)
    page.close()


def test_a_chat_that_is_launched_again_keeps_its_address_and_its_page():
    chat = Chat(ScriptedBackend())
    with launch(chat, port=7960, open_browser=False) as page:
        assert launch(chat, port=7960, open_browser=False) is page


def test_chats_of_one_model_are_served_side_by_side_until_the_last_is_closed():
    one = Chat(ScriptedBackend())
    other = Chat(one.backend)
    first = launch(one, port=7960, open_browser=False)
    second = launch(other, port=7960, open_browser=False)
    assert first.address != second.address
    assert urlsplit(first.address).netloc == urlsplit(second.address).netloc
    first.close()
    first.close()
    assert status_of(second.address) == 200
    second.close()
    with pytest.raises(OSError):
        status_of(second.address)
    with launch(one, port=7960, open_browser=False) as again:
        assert status_of(again.address) == 200


def test_another_model_and_another_port_have_a_server_of_their_own():
    chat, other = Chat(ScriptedBackend()), Chat(ScriptedBackend())
    with (
        launch(chat, port=7960, open_browser=False) as page,
        launch(other, port=7960, open_browser=False) as of_another_model,
        launch(chat, port=7990, open_browser=False) as on_another_port,
    ):
        addresses = (page.address, of_another_model.address, on_another_port.address)
        assert len({urlsplit(address).netloc for address in addresses}) == 3


def test_a_chat_that_is_shared_again_brings_its_new_system_text_and_no_other_page():
    chat = Chat(ScriptedBackend(), system="Be brief.")
    library = Library(lambda: chat.backend)
    library.share("secret", chat)
    live = library.open("anybody", "secret").live
    chat.system = "Be long."
    library.share("secret", chat)
    assert library.open("anybody", "secret").live is live
    assert live.system == "Be long."


def test_a_page_that_shows_a_closed_chat_cannot_go_on_with_it():
    chat = Chat(ScriptedBackend())
    library = Library(lambda: chat.backend)
    library.share("secret", chat)
    live = library.open("anybody", "secret").live
    library.unshare("secret")
    with pytest.raises(ConversationError, match="closed"):
        live.begin(lambda it: it.stream("From the page"))
    with pytest.raises(UnknownConversationError):
        library.open("anybody", "secret")
    assert chat.ask("From the program").text == "From the program"


class Browser:
    """Does not come back from showing a page before the test is over."""

    def __init__(self):
        self.shown = queue.Queue()
        self.closed = threading.Event()

    def open(self, address):
        self.shown.put(address)
        self.closed.wait()


@pytest.fixture
def browser(monkeypatch):
    browser = Browser()
    monkeypatch.setattr(launching.webbrowser, "get", lambda: browser)
    monkeypatch.setattr(launching.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    yield browser
    browser.closed.set()


def test_a_browser_that_blocks_is_not_waited_for(browser, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    with launch(Chat(ScriptedBackend()), port=7960) as page:
        assert browser.shown.get(timeout=10) == page.address


def test_without_a_screen_no_browser_is_looked_for(browser):
    with launch(Chat(ScriptedBackend()), port=7960), pytest.raises(queue.Empty):
        browser.shown.get(timeout=0.5)


def test_a_text_browser_does_not_take_the_programs_terminal(monkeypatch, browser):
    monkeypatch.setenv("DISPLAY", ":0")
    text = launching.webbrowser.GenericBrowser("w3m")
    monkeypatch.setattr(launching.webbrowser, "get", lambda: text)
    monkeypatch.setattr(text, "open", browser.open)
    launching._show("http://127.0.0.1")
    assert browser.shown.empty()


def test_what_is_said_on_the_page_is_in_the_chat():
    chat = Chat(ScriptedBackend(), system="Be brief.")
    chat.ask("From the program")
    library = Library(lambda: chat.backend)
    library.share("secret", chat)
    live = library.open("anybody", "secret").live
    assert live.moment.messages[0].text == "From the program"
    live.begin(lambda it: it.stream("From the page"))
    assert not list(live.watch())[-1].answering
    assert [m.text for m in chat.conversation.messages][2:] == ["From the page", "From the page"]
    assert live.system == chat.system == "Be brief."


def test_what_the_program_says_meanwhile_is_seen_by_who_looks_next():
    chat = Chat(ScriptedBackend())
    library = Library(lambda: chat.backend)
    library.share("secret", chat)
    live = library.open("anybody", "secret").live
    chat.ask("Later")
    assert next(live.watch()).messages[0].text == "Later"


def test_a_failed_answer_leaves_the_programs_chat_as_it_was():
    chat = Chat(ScriptedBackend())
    chat.ask("One")
    library = Library(lambda: chat.backend)
    library.share("secret", chat)
    chat.backend._error = RuntimeError("It broke.")
    live = library.open("anybody", "secret").live
    live.begin(lambda it: it.stream("Two"))
    assert list(live.watch())[-1].is_error
    assert [m.text for m in chat.conversation.messages] == ["One", "One"]
