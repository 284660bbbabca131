"""A click on a word of an answer shows why it is there, in a browser."""

import threading
import time

import pytest

from gemma3vl_app.errors import EngineError
from gemma3vl_app.store import ConversationStore
from gemma3vl_app.testing.scripted import ScriptedBackend
from gemma3vl_app.traces import Attention
from tests.web.conftest import ChatPage, served
from tests.web.test_looks import serious_faults
from tests.webui.backends import elsewhere

pytestmark = pytest.mark.web

SAID = ["A ", "red ", "circle ", "and ", "a ", "red ", "square."]


@pytest.fixture
def backend():
    return ScriptedBackend(SAID)


@pytest.fixture
def page(open_page, backend, pictures):
    page = open_page(backend)
    page.attach(pictures[0])
    page.send("What is it?")
    page.wait_for_answer()
    return page


class Why:
    """The panel that says why a word is there."""

    def __init__(self, page: ChatPage) -> None:
        self.page = page.page
        self.panel = self.page.locator(".why-panel")

    def word(self, text, occurrence=0):
        words = self.page.locator("#conversation .word")
        return words.filter(has_text=text).nth(occurrence)

    def wait_until_found(self):
        self.panel.locator("figure:not(.unheated)").first.wait_for()
        self.panel.locator(".choice").first.wait_for()

    def wait_until_gone(self):
        self.panel.wait_for(state="detached")
        assert self.page.locator(".word.asked").count() == 0


def attention(backend):
    """Which tokens were asked about."""
    return [each.asked.tokens for each in backend.traces if isinstance(each.asked, Attention)]


def test_a_click_shows_the_picture_with_heat_and_what_else_was_likely(page, backend):
    why = Why(page)
    why.word("red", 1).click()
    why.wait_until_found()
    assert "Why “red”?" in why.panel.inner_text()
    picture = why.panel.locator("figure img")
    assert picture.get_attribute("src").startswith("data:image/jpeg")
    size = "each => each.decode().then(() => [each.naturalWidth, each.naturalHeight])"
    assert picture.evaluate(size) == [300, 200]
    shown = why.panel.locator(".sure").inner_text().split()
    assert [part for part in shown if "other" in part] == ["other1", "other2", "other3", "other4"]
    assert "61" in shown
    assert attention(backend) == [(5,)]  # the second "red"
    assert page.foreign == []
    why.word("red", 1).click()
    why.wait_until_gone()


def test_another_method_is_shown_and_the_first_is_still_known(page, backend):
    why = Why(page)
    why.word("circle").click()
    why.wait_until_found()
    why.panel.get_by_role("button", name="Occlusion").click()
    why.panel.get_by_text("strongest part covered").wait_for()
    assert why.panel.locator(".method[aria-pressed=true]").inner_text().startswith("Occlusion")
    asked = len(backend.traces)
    why.panel.get_by_role("button", name="Attention").click()
    why.panel.get_by_text("where the model looked most").wait_for()
    assert why.panel.locator("figure:not(.unheated)").count() == 1
    assert len(backend.traces) == asked


def test_the_slow_method_shows_its_progress_and_can_be_stopped(page, backend):
    backend._seconds_per_chunk = 0.1
    why = Why(page)
    why.word("red").click()
    why.wait_until_found()
    why.panel.get_by_role("button", name="Occlusion").click()
    bar = why.panel.get_by_role("progressbar")
    page.page.wait_for_function(
        "+document.querySelector('.why-panel [role=progressbar]').getAttribute('aria-valuenow') > 3"
    )
    assert bar.is_visible()
    why.panel.get_by_role("button", name="Stop").click()
    why.panel.get_by_text("Stopped.").wait_for()
    assert not bar.is_visible()
    backend._seconds_per_chunk = 0
    why.panel.get_by_role("button", name="Occlusion").click()  # anew
    why.wait_until_found()


@pytest.mark.parametrize("way", ["Escape", "Close", "another word", "new conversation", "reload"])
def test_what_ends_the_panel_ends_the_work(page, backend, way):
    backend._seconds_per_chunk = 0.2
    why = Why(page)
    why.word("red").click()
    why.wait_until_found()
    why.panel.get_by_role("button", name="Occlusion").click()
    page.page.locator(".why-panel [aria-valuenow]").wait_for()
    if way == "Escape":
        page.page.keyboard.press("Escape")
    elif way == "Close":
        why.panel.get_by_role("button", name="Close").click()
    elif way == "new conversation":
        page.page.locator("#shelf .new").click()
    elif way == "reload":
        page.page.reload()
    else:
        why.word("circle").click()
        why.panel.get_by_text("Why “circle”?").wait_for()
        why.wait_until_found()
    if way != "another word":
        why.wait_until_gone()
    until = time.monotonic() + 5
    while any(each.name == "explanation" for each in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_keyboard_reaches_every_word(page, backend):
    why = Why(page)
    page.box.focus()
    for _ in range(20):
        page.page.keyboard.press("Shift+Tab")
        if page.page.evaluate("document.activeElement.classList.contains('word')"):
            break
    assert page.page.evaluate("document.activeElement.textContent") == "A"
    for _ in range(3):
        page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("ArrowLeft")
    page.page.keyboard.press("Enter")
    why.panel.get_by_text("Why “circle”?").wait_for()
    why.wait_until_found()
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Enter")  # the first button of the panel closes it
    why.wait_until_gone()
    assert page.page.evaluate("document.activeElement.textContent") == "circle"
    page.page.keyboard.press("End")
    page.page.keyboard.press(" ")
    why.panel.get_by_text("Why “square”?").wait_for()
    page.page.keyboard.press("Escape")
    why.wait_until_gone()


def test_text_is_selected_as_before_and_no_panel_opens(page):
    why, mouse = Why(page), page.page.mouse
    text = "getSelection().toString()"
    why.word("square").element_handle().wait_for_element_state("stable")  # nothing moves any more
    start, end = (why.word(each).bounding_box() for each in ("red", "square"))
    mouse.move(start["x"] + 1, start["y"] + 8)
    mouse.down()
    mouse.move(end["x"] + end["width"] - 1, end["y"] + 8, steps=5)
    mouse.up()
    assert page.page.evaluate(text) == "red circle and a red square"
    why.word("circle").dblclick()
    assert page.page.evaluate(text).strip() == "circle"
    mouse.click(end["x"] + 200, end["y"] + 8)  # nothing is selected any more
    mouse.move(start["x"] + 1, start["y"] + 8)
    mouse.down()
    mouse.move(start["x"] + start["width"] - 1, start["y"] + 8, steps=3)
    mouse.up()
    assert page.page.evaluate(text) == "red"  # also within one word
    time.sleep(0.5)
    assert why.panel.count() == 0
    assert page.said() == ["".join(SAID)]


def test_words_can_be_clicked_once_the_answer_is_finished(open_page):
    backend = ScriptedBackend([f"word{k} " for k in range(12)], seconds_per_chunk=0.15)
    page = open_page(backend)
    page.send("Go")
    page.wait_for_text()
    assert page.page.locator("#conversation .word").count() == 0
    height = "document.querySelector('#conversation .assistant').offsetHeight"
    before = page.page.evaluate(height)
    page.wait_for_answer()
    page.page.locator("#conversation .word").nth(11).wait_for()
    assert page.page.evaluate(height) == before  # nothing has jumped
    page.send("Again")
    page.wait_for_messages(4)
    answers = page.page.locator("#conversation .assistant")
    assert answers.nth(0).locator(".word").count() == 12
    assert answers.nth(1).locator(".word").count() == 0


def test_the_panel_stays_while_another_answer_is_written(page, backend):
    why = Why(page)
    why.word("red").click()
    why.wait_until_found()
    backend._chunks, backend._seconds_per_chunk = ["more "] * 10, 0.1
    page.send("And?")
    page.wait_for_messages(4)
    page.wait_for_answer()
    assert why.panel.locator("figure:not(.unheated)").count() == 1
    first = page.page.locator("#conversation .assistant").nth(0)
    assert first.locator(".why-panel").count() == first.locator(".word.asked").count() == 1
    page.press("Answer again", message=3)
    page.wait_for_answer()
    assert why.panel.count() == 1
    page.press("Take back", message=2)
    page.wait_for_messages(2)
    assert why.panel.count() == 1
    page.press("Answer again", message=1)  # the answer itself is another one
    why.wait_until_gone()


def test_without_a_picture_it_says_how_sure_the_model_was(open_page, backend):
    page = open_page(backend)
    page.send("What?")
    page.wait_for_answer()
    why = Why(page)
    why.word("red").click()
    why.panel.locator(".choice").wait_for()
    assert "There is no picture before this answer." in why.panel.inner_text()
    assert why.panel.locator(".method, img").count() == 0


def test_where_the_model_cannot_be_looked_into_nothing_changes(open_page, backend):
    page = open_page(elsewhere(backend))
    page.send("What?")
    page.wait_for_answer()
    assert page.page.locator("#conversation :is(.word, .hint)").count() == 0
    assert page.said() == ["".join(SAID)]


def test_what_fails_is_told_in_the_panel(page, backend):
    backend._error = EngineError("The engine <b>broke</b>.")
    why = Why(page)
    why.word("red").click()
    why.panel.get_by_text("The engine <b>broke</b>.").wait_for()


def test_the_text_of_words_and_tokens_is_never_markup(open_page, pictures):
    attack = "<img src=x onerror=alert(1)> <b>bold</b>"
    page = open_page(ScriptedBackend([attack]))
    page.attach(pictures[0])
    page.send("What?")
    page.wait_for_answer()
    assert page.said() == [attack]
    why = Why(page)
    why.word("onerror").click()
    why.wait_until_found()
    assert "onerror=alert(1)>" in why.panel.locator(".chosen").inner_text()
    assert (page.dialogs, page.page.locator("#conversation b").count()) == ([], 0)


def test_coloured_words_can_be_clicked_too(open_page, backend, pictures):
    page = open_page(backend)
    page.page.locator("#settings button").first.click()
    page.page.get_by_label("Show how sure the model was").check()
    page.attach(pictures[0])
    page.send("What?")
    page.wait_for_answer()
    assert page.page.locator("#conversation .word .token").count() == len(SAID)
    why = Why(page)
    why.word("red", 1).click()
    why.wait_until_found()
    assert attention(backend) == [(5,)]


def test_words_without_spaces_and_beyond_the_first_plane_are_found(open_page, pictures):
    backend = ScriptedBackend(["🔴🔴 ", "一个红色的圆圈 ", "红色"])
    page = open_page(backend)
    page.attach(pictures[0])
    page.send("?")
    page.wait_for_answer()
    why = Why(page)
    why.word("红色", 1).click()
    why.wait_until_found()
    assert attention(backend) == [(2,)]


def test_an_answer_from_the_disk_is_explained_as_it_was_written(browser, tmp_path, pictures):
    context = browser.new_context()
    with ConversationStore(tmp_path / "kept") as store:
        with served(ScriptedBackend(SAID), store) as address:
            page = ChatPage(context.new_page(), address)
            page.attach(pictures[0])
            page.send("What?")
            page.wait_for_answer()
            kept = page.page.url
        backend = ScriptedBackend(SAID)
        with served(backend, store) as address:
            again = ChatPage(context.new_page(), f"{address}/?{kept.split('?')[1]}")
            again.wait_for_messages(2)
            why = Why(again)
            why.word("red", 1).click()
            why.wait_until_found()
            context.close()
    (first, second) = backend.traces
    assert [token.id for token in first.answer.tokens] == list(range(len(SAID)))
    assert second.asked.tokens == (5,)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_the_panel(open_page, backend, pictures, scheme):
    page = open_page(backend, color_scheme=scheme)
    page.attach(pictures[0])
    page.send("What?")
    page.wait_for_answer()
    assert serious_faults(page) == []
    why = Why(page)
    why.word("red").click()
    why.wait_until_found()
    why.panel.locator("summary").click()
    assert serious_faults(page) == []


def test_the_panel_fits_on_a_phone(open_page, browser, page, backend, pictures):
    phone = ChatPage(browser.new_page(viewport={"width": 360, "height": 700}), page.page.url)
    phone.attach(*pictures)
    phone.send("Which?")
    phone.wait_for_answer()
    why = Why(phone)
    why.word("red").click()
    why.wait_until_found()
    captions = why.panel.locator("figcaption").all_inner_texts()
    assert captions == ["Picture 1: 50 % of the heat", "Picture 2: 50 % of the heat"]
    box = why.panel.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert why.word("red").bounding_box()["y"] > 0  # the word stays in sight
    phone.page.close()
