"""What values and the chat look like in JupyterLab, and what the keyboard and the clipboard do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.notebooks.lab import look, paste, run_all, served, shown

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


def test_what_code_says_is_shown_without_a_refresh(chat):
    expect(chat.get_by_text("asked by code for $7 and $8", exact=True)).to_have_count(2)


def test_the_question_box_is_as_wide_as_the_chat_and_no_wider(chat):
    inner, outer = chat.locator("textarea").bounding_box(), chat.bounding_box()
    left, right = inner["x"] - outer["x"], outer["width"] - inner["width"]
    assert 0 <= left <= right - left + 1, (inner, outer)


def test_enter_sends_and_with_shift_begins_a_line(page, chat):
    box = chat.locator("textarea")
    box.click()
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line, typed fast")
    page.keyboard.press("Enter")
    expect(chat.get_by_text("first line\nsecond line, typed fast").last).to_be_visible()
    expect(box).to_have_value("")
    expect(page.locator(".jp-InputPrompt", has_text="[5]")).to_have_count(0)  # no cell ran
    page.keyboard.type("and again")
    chat.get_by_role("button", name="Send").click()
    expect(chat.get_by_text("and again", exact=True)).to_have_count(2)
    look(page, "lab-enter")


def test_pictures_above_what_a_message_holds_arrive(page, chat):
    box = chat.locator("textarea")
    box.click()
    paste(page, "a.png", "b.png", side=2000, noise=True)  # 12 MB each
    for name in ("a.png", "b.png"):
        chat.locator("figure", has_text=name).wait_for()
    look(page, "lab-large")
    box.fill("Two?")
    box.press("Enter")
    expect(chat.get_by_text("Two?", exact=True)).to_have_count(2)


def test_a_picture_above_the_limit_is_told_in_a_line(page, chat):
    chat.locator("textarea").click()
    paste(page, "huge.png", side=3200, noise=True)  # 30 MB
    expect(chat.get_by_role("status")).to_contain_text("'huge.png' has")
    look(page, "lab-too-large")


def test_pictures_can_be_chosen(page, chat):
    with page.expect_file_chooser() as choosing:
        chat.get_by_role("button", name="Pictures", exact=True).click()
    choosing.value.set_files([Path(__file__).parents[2] / "docs" / "circle.png"])
    chat.locator("figure", has_text="circle.png").wait_for()
