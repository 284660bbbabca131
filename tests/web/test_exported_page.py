"""The exported page in a real browser: it asks for nothing, runs nothing, and fits the screen."""

import pytest
from playwright.sync_api import Browser, Page

from gemma3vl_app.export import export
from gemma3vl_app.transcript import Transcript
from tests.export.chats import EVERYDAY, hostile

pytestmark = pytest.mark.web


@pytest.fixture
def open_export(browser: Browser, tmp_path):
    """Export a chat and open it; the page has lists of requests, dialogs and complaints."""
    pages = []

    def open_export(transcript: Transcript, **how) -> tuple[Page, list[str]]:
        done = export(transcript, tmp_path / "a.html", branches=True, overwrite=True)
        page = browser.new_page(**how)
        pages.append(page)
        noted: list[str] = []
        page.on("request", lambda r: noted.append(r.url))
        page.on("dialog", lambda d: (noted.append(d.message), d.dismiss()))
        page.on("console", lambda m: noted.append(m.text))
        page.goto(done.file.as_uri())
        page.wait_for_load_state("networkidle")
        return page, [each for each in noted if not each.startswith(("data:", "file:"))]

    yield open_export
    for page in pages:
        page.close()


@pytest.mark.parametrize("chat", [EVERYDAY, hostile()], ids=["everyday", "hostile"])
def test_it_asks_for_nothing_and_runs_nothing(open_export, chat):
    page, noted = open_export(chat)
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.click()
    assert noted == []
    assert page.locator("script").count() == 0
    images = page.locator("img")
    assert images.count() > 1
    assert all(image.evaluate("i => i.naturalWidth") > 0 for image in images.all())


def test_the_policy_stops_scripts_and_requests(open_export):
    """A page that somebody added to afterwards still loads and runs nothing."""
    page, _ = open_export(EVERYDAY)
    blocked = page.evaluate(
        """() => new Promise(done => {
            const image = new Image();
            image.onload = () => done(false);
            image.onerror = () => done(true);
            image.src = "https://evil.test/x.png";
        })"""
    )
    assert blocked
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), "
                  "{textContent: 'window.ran = true'}))")  # fmt: skip
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize("width", [320, 1100])
def test_it_fits_narrow_and_wide_screens(open_export, width):
    page, _ = open_export(hostile(), viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(open_export, scheme):
    page, _ = open_export(EVERYDAY, color_scheme=scheme)
    for selector in (".user .text", ".assistant .text", ".assistant h2", "header p", "summary"):
        ratio = page.locator(selector).first.evaluate(CONTRAST)
        assert ratio >= 4.5, (selector, ratio)  # the Web Content Accessibility Guidelines, level AA


def test_an_answer_of_another_version_opens(open_export):
    page, _ = open_export(EVERYDAY)
    yes = page.get_by_text("Is this red?")
    assert not yes.is_visible()
    page.get_by_text("1 other version").last.click()
    assert yes.is_visible()


CONTRAST = """element => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => {
        const [r, g, b] = numbers(colour).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const back = element => getComputedStyle(element).backgroundColor;
    let behind = element;
    while (numbers(back(behind))[3] === 0) behind = behind.parentElement;
    const [a, b] = [getComputedStyle(element).color, back(behind)]
        .map(light).sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}"""
