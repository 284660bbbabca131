"""What values and the chat look like in JupyterLab, and what the keyboard and the clipboard do."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.notebooks.lab import look, run_all, served, shown

pytestmark = [pytest.mark.notebook, pytest.mark.slow]

CELLS = [
    """
import gemma3vl_app as gv
from gemma3vl_app.testing import ScriptedBackend
from IPython.display import HTML
chat = gv.Chat(ScriptedBackend())
chat.ask("It costs $5 and $6 today")
""",
    'HTML("<p>Math is drawn, as $x^2$.</p>")',
    "talk = gv.notebook.chat(chat)\ntalk",
    'chat.ask("asked by code for $7 and $8").text',
]


def notebook(*cells: str) -> dict:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [
            {
                **{"cell_type": "code", "id": f"cell-{n}", "metadata": {}},
                **{"execution_count": None, "outputs": [], "source": cell.strip()},
            }
            for n, cell in enumerate(cells)
        ],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("lab")
    with served(folder, "shown.ipynb", notebook(*CELLS)) as address, shown(address) as page:
        run_all(page)
        page.locator(".gemma3vl-chat textarea").wait_for()
        page.locator("mjx-container").first.wait_for()
        expect(page.locator(".jp-InputPrompt", has_text="[4]")).to_be_visible()
        yield page


@pytest.fixture
def chat(page):
    return page.locator(".gemma3vl-chat")


def test_dollars_of_people_and_models_are_no_math(page):
    look(page, "lab-dollars")
    assert page.locator("mjx-container").count() == 1
    assert page.get_by_text("It costs $5 and $6 today", exact=True).count() >= 2
