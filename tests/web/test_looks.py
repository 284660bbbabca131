"""How the page looks: readable for everybody, in the dark, on a phone, in other languages."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from gemma3vl_app.store import ConversationStore
from gemma3vl_app.testing.scripted import ScriptedBackend

pytestmark = pytest.mark.web


def serious_faults(page) -> list[str]:
    """Return what axe finds wrong that is serious or critical."""
    found = Axe().run(page.page).response["violations"]
    return [
        f"{fault['id']}: {node['html'][:100]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_and_reach_everything(open_page, pictures, tmp_path, scheme):
    with ConversationStore(tmp_path / "kept") as store:
        page = open_page(ScriptedBackend(["Yes."]), store, color_scheme=scheme)
        assert serious_faults(page) == []
        page.attach(*pictures)
        assert serious_faults(page) == []
        page.send("Which?")
        page.wait_for_answer()
        page.page.locator("#settings button").first.click()
        page.page.get_by_role("button", name="More").click()
        page.page.get_by_label("Temperature").wait_for()
        assert serious_faults(page) == []


def test_on_a_phone_the_conversation_comes_first(open_page, browser):
    page = open_page(ScriptedBackend(["Yes."]))
    phone = type(page)(browser.new_page(viewport={"width": 390, "height": 780}), page.page.url)
    phone.page.wait_for_function(
        "document.elementFromPoint(195, 700).closest('#composer') !== null"  # nothing lies over it
    )
    phone.send("Hello")
    assert phone.wait_for_answer() == "Yes."
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    phone.page.close()


def test_the_page_speaks_the_browsers_language(open_page):
    page = open_page(ScriptedBackend(["Ja."]), locale="de-DE")
    assert "Neues Gespr\u00e4ch" in page.page.locator("#shelf").inner_text()
    assert page.page.get_by_text("Einstellungen").is_visible()


def test_everything_is_reached_with_the_keyboard(open_page):
    page = open_page(ScriptedBackend(["Yes."]))
    assert page.page.evaluate("document.activeElement.tagName") == "TEXTAREA"  # ready to write
    page.send("Hello")
    page.wait_for_answer()
    page.box.focus()
    names = []
    for _ in range(8):
        page.page.keyboard.press("Shift+Tab")
        names.append(page.page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert {"Answer again", "Copy", "Edit"} <= set(names)
