"""The page in a browser, with the real demo model behind it: what it says is true."""

import pytest
from PIL import Image

from gemma3vl_app.backends.local import load
from gemma3vl_app.generation import Greedy
from gemma3vl_app.webui.examples import Thing, draw

pytestmark = [pytest.mark.web, pytest.mark.slow]
ANSWER_SEC = 60


@pytest.fixture(scope="module")
def demo():
    with load("demo") as backend:
        yield backend


@pytest.fixture
def drawn(tmp_path):
    """A red circle and a blue square, each in the middle of its picture."""

    def save(name: str, image: Image.Image):
        image.save(tmp_path / name)
        return tmp_path / name

    return [
        save("circle.png", draw((Thing("red", "circle", (0.5, 0.5), 0.25),))),
        save("square.png", draw((Thing("blue", "square", (0.5, 0.5), 0.25),))),
    ]


def test_the_demo_answers_the_same_every_time(demo):
    assert demo.capabilities.sampling == Greedy()


def test_two_pictures_and_a_follow_up_are_answered_rightly(open_page, demo, drawn):
    page = open_page(demo)
    page.attach(*drawn)
    page.send("What color is the circle in the first picture?")
    assert "red" in page.wait_for_answer(ANSWER_SEC).lower()

    page.send("What color is the square in the second picture?")
    page.wait_for_messages(4)
    assert "blue" in page.wait_for_answer(ANSWER_SEC).lower()
    cached = int(page.line.split(" of them cached")[0].split()[-1])
    assert cached > 2 * demo.capabilities.image_tokens  # neither picture was computed again
    assert page.foreign == []


@pytest.mark.parametrize(("colour", "shape"), [("red", "circle"), ("blue", "star")])
def test_a_drawn_shape_is_named(open_page, demo, tmp_path, colour, shape):
    file = tmp_path / "shape.png"
    draw((Thing(colour, shape, (0.5, 0.5), 0.25),)).save(file)
    page = open_page(demo)
    page.attach(file)
    page.send(f"What color is the {shape}?")
    assert colour in page.wait_for_answer(ANSWER_SEC).lower()


@pytest.mark.parametrize(
    ("question", "truth"),
    [
        ("What is in the picture?", "red circle"),
        ("Where is the blue square?", "bottom right"),
        ("Which picture has a star?", "second"),
    ],
)
def test_the_examples_on_the_page_are_answered_rightly(open_page, demo, question, truth):
    page = open_page(demo)
    page.page.get_by_text(question).click()
    assert truth in page.wait_for_answer(ANSWER_SEC).lower()


def test_a_click_on_a_word_shows_where_it_comes_from(open_page, demo, drawn):
    page = open_page(demo)
    page.attach(drawn[0])
    page.send("What color is the circle?")
    page.wait_for_answer(ANSWER_SEC)
    page.send("Where is it?")
    page.wait_for_messages(4)
    page.wait_for_answer(ANSWER_SEC)
    words = page.page.locator("#conversation .assistant").first.locator(".word")  # an earlier one
    words.filter(has_text="red").click()
    panel = page.page.locator(".why-panel")
    for method in ("Attention", "Saliency"):
        panel.get_by_role("button", name=method).click()
        panel.locator(f".method[aria-pressed=true]:has-text('{method}')").wait_for()
        panel.locator("figure:not(.unheated)").wait_for(timeout=1000 * ANSWER_SEC)
    assert panel.locator(".chosen q").inner_text() == "Red"
    assert panel.locator(".others q").count() >= 3
    assert page.page.locator(".why-panel .line").inner_text() == ""
