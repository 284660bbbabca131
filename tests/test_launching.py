"""A program's own chat in the browser page, while the program goes on."""

import urllib.request

from gemma3vl_app.chat import Chat
from gemma3vl_app.launching import launch
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui.library import Library


def test_the_page_is_there_until_it_is_closed():
    chat = Chat(ScriptedBackend())
    with launch(chat, port=7960, open_browser=False) as page:
        assert page.address.startswith("http://127.0.0.1:79") and "/?c=" in page.address
        with urllib.request.urlopen(page.address) as answer:
            assert answer.status == 200
        assert page.address in repr(page) and page.address in page._repr_html_()
    assert not page._thread.is_alive()
    page.close()


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
