"""JupyterLab itself in a real browser: 01 runs, and its widget answers about a picture."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.notebooks.lab import look, paste, run_all, served, shown

pytestmark = [pytest.mark.notebook, pytest.mark.slow]

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_quickstart.ipynb"
RUN_SEC = 600


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    """Show a copy of the notebook with the last cell, which closes the model, left out."""
    data = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    data["cells"] = data["cells"][:-1]
    folder = tmp_path_factory.mktemp("lab")
    with served(folder, NOTEBOOK.name, data) as address, shown(address) as page:
        yield page


def test_the_quickstart_runs_and_its_widget_answers_about_a_picture(page):
    run_all(page)
    chat = page.locator(".gemma3vl-chat")
    chat.get_by_text("Red.", exact=True).first.wait_for(timeout=1000 * RUN_SEC)
    chat.scroll_into_view_if_needed()
    look(page, "lab-widget")
    assert not page.locator(".jp-RenderedText[data-mime-type*=stderr] .ansi-red-fg").count()

    answers_about_a_picture_that_is_pasted(page, chat)
    look(page, "lab-pasted")


def answers_about_a_picture_that_is_pasted(page, chat):
    box = chat.locator("textarea")
    box.click()
    paste(page, "blue.png")
    chat.locator("figure", has_text="blue.png").wait_for()
    box.fill("What color is the square?")
    look(page, "lab-ready")
    chat.get_by_role("button", name="Send").click()
    chat.get_by_text("Blue.", exact=True).wait_for(timeout=1000 * RUN_SEC)
