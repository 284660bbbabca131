"""The models on the page: seeing what fits, using another one."""

import threading
from dataclasses import replace

import pytest

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress
from gemma3vl_app.manager import ModelManager
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES
from tests.web.conftest import ChatPage, served
from tests.web.test_looks import serious_faults

pytestmark = pytest.mark.web


@pytest.fixture
def models(browser):
    """A page whose models load when `models.go_on` is set."""
    go_on = threading.Event()

    def load(source, *, progress, **options):
        if source == "1b-it":
            raise LoadError("The licence of 1b-it is not accepted.")
        if source != "demo":
            progress(Progress("reading", 1, 4, "bytes", f"Reading {source}"))
            go_on.wait(timeout=20)
        about = replace(DEFAULT_CAPABILITIES, model=str(source), title=str(source))
        return ScriptedBackend([f"I am {source}."], capabilities=about)

    with (
        ModelManager(load) as manager,
        served(manager.load("demo"), manager=manager) as address,
    ):
        page = ChatPage(browser.new_page(), address)
        page.go_on, page.backend = go_on, manager.current
        yield page
        page.page.close()


def open_models(page: ChatPage) -> None:
    page.page.get_by_role("tab", name="Models").click()
    page.page.locator("#models .model").first.wait_for()


def model(page: ChatPage, name: str):
    return page.page.locator(f"#models .model[data-name='{name}']")


def test_models_say_what_fits_and_everybody_can_read_it(models):
    open_models(models)
    assert model(models, "demo").locator(".state").inner_text() == "in use"
    large = model(models, "27b-it")
    assert large.locator(".plan").count() > 0
    large.get_by_text("Why").click()
    assert large.locator("details li").count() > 0
    assert serious_faults(models) == []


def test_another_model_answers_and_nothing_that_was_written_is_lost(models):
    models.send("Who are you?")
    assert models.wait_for_answer() == "I am demo."
    models.box.fill("My draft")
    open_models(models)
    model(models, "270m-it").get_by_role("button", name="Use").click()
    said = models.page.locator("#models .said")
    models.page.locator("#models .said", has_text="25 %").wait_for()  # it says how far it is
    models.go_on.set()
    models.page.locator("#models .current", has_text="Gemma 3 270M, instr").wait_for()
    models.page.locator("#head", has_text="270m-it").wait_for()
    assert "demo" not in models.page.locator("#head").inner_text()
    assert said.inner_text()
    models.page.get_by_role("tab", name="Chat").click()
    assert models.box.input_value() == "My draft"
    models.box.press("Enter")
    models.wait_for_messages(4)
    assert models.wait_for_answer() == "I am 270m-it."


def test_a_model_that_cannot_be_loaded_is_told_and_the_old_one_answers(models):
    open_models(models)
    model(models, "1b-it").get_by_role("button", name="Use").click()
    models.page.locator("#models .said", has_text="licence of 1b-it").wait_for()
    models.page.get_by_role("tab", name="Chat").click()
    models.send("Who are you?")
    assert models.wait_for_answer() == "I am demo."


def test_a_reload_of_the_page_works_while_a_model_is_loaded(models):
    open_models(models)
    model(models, "270m-it").get_by_role("button", name="Use").click()
    models.page.locator("#models .said", has_text="25 %").wait_for()
    models.page.reload()
    models.wait_until_loaded()
    models.send("Who are you?")
    assert models.wait_for_answer() == "I am demo."
    models.go_on.set()


def test_an_adapter_is_added_and_answers(models):
    open_models(models)
    field = model(models, "demo").get_by_label("Add an adapter")
    field.fill("cats=runs/cats")
    field.press("Enter")
    models.page.locator("#models .said", has_text="cats is ready").wait_for()
    assert "cats" in model(models, "demo").inner_text()
    models.page.get_by_role("tab", name="Chat").click()
    models.page.locator("#settings button").first.click()
    assert (
        models.page.get_by_role("combobox", name="Adapter").input_value() == "cats"
    )  # the only one is chosen
    models.send("Who are you?")
    models.wait_for_answer()
    assert models.backend.requests[-1].adapter == "cats"


def test_two_models_are_compared_side_by_side_one_after_the_other(models, pictures):
    models.go_on.set()
    page = models.page
    page.get_by_role("tab", name="Compare").click()
    page.locator("input[type=file]").last.set_input_files([str(pictures[0])])
    page.locator("#compare-question textarea").fill("Who are you?")
    page.get_by_label("Model", exact=True).nth(1).fill("270m-it")
    page.get_by_label("Model", exact=True).nth(1).press("Enter")
    page.locator("#compare-temperature-B :is(input, textarea)").fill("0.5")
    page.locator("#compare-button").click()
    page.locator("#compare-line-B", has_text="tokens/s").wait_for()
    answers = [page.locator(f"#compare-{side} textarea").input_value() for side in "AB"]
    assert answers == ["I am demo.", "I am 270m-it."]
    page.locator("#compare-button:enabled").wait_for()
    page.get_by_role("tab", name="Chat").click()
    models.send("Who are you?")
    assert models.wait_for_answer() == "I am demo."  # as before the comparison
    assert serious_faults(models) == []


def test_while_a_model_is_swapped_an_answer_of_the_old_one_goes_on(browser):
    words = [f"w{k} " for k in range(40)]

    def load(source, **options):
        about = replace(DEFAULT_CAPABILITIES, model=str(source), title=str(source))
        if source == "demo":
            return ScriptedBackend(words, seconds_per_chunk=0.2, capabilities=about)
        return ScriptedBackend([f"I am {source}."], capabilities=about)

    with (
        ModelManager(load) as manager,
        served(manager.load("demo"), manager=manager) as address,
    ):
        operator, other = (ChatPage(browser.new_page(), address) for _ in range(2))
        other.send("Count")
        other.wait_for_text()
        open_models(operator)
        model(operator, "270m-it").get_by_role("button", name="Use").click()
        operator.page.locator("#head", has_text="270m-it").wait_for()
        assert other.wait_for_answer(20).split() == "".join(words).split()
        other.send("Who are you?")
        other.wait_for_messages(4)
        assert other.wait_for_answer() == "I am 270m-it."
        for each in (operator, other):
            each.page.close()
