"""The demo, asked about pictures as a person would: what it says is true, whatever came before.

Drawn here, not by what it was trained with; answers are judged by what they mean.
"""

import pytest
from PIL import Image, ImageDraw

import gemma3vl_app as gv

pytestmark = pytest.mark.slow

SIDE = 400  # pixels


def drawn(*things, background="white"):
    """Draw (colour, shape, x, y) with x and y in parts of the picture."""
    image = Image.new("RGB", (SIDE, SIDE), background)
    pen = ImageDraw.Draw(image)
    for colour, shape, x, y in things:
        x, y, r = SIDE * x, SIDE * y, SIDE * 0.14
        if shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif shape == "square":
            pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=colour)
        else:
            pen.polygon([(x, y - r), (x + 0.87 * r, y + r / 2), (x - 0.87 * r, y + r / 2)], colour)
    return image


CIRCLE_AND_SQUARE = drawn(("red", "circle", 0.2, 0.2), ("blue", "square", 0.8, 0.8))
TRIANGLE = drawn(("green", "triangle", 0.5, 0.5))


@pytest.fixture(scope="module")
def demo(base_270m):
    with gv.load("demo") as backend:
        yield backend


def says(answer, *words):
    told = str(answer.text if hasattr(answer, "text") else answer).lower()
    told = told.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return all(word in told for word in words)


def test_it_describes_what_is_there_and_where(demo):
    told = gv.caption(demo, CIRCLE_AND_SQUARE)
    assert says(told, "red circle at the top left", "blue square at the bottom right")
    assert says(gv.caption(demo, TRIANGLE), "green triangle in the middle")


def test_a_follow_up_is_about_what_was_meant_before(demo):
    chat = gv.Chat(demo)
    assert says(chat.ask("What shape is red?", images=[CIRCLE_AND_SQUARE]), "circle")
    answer = chat.ask("Where is it?")
    assert says(answer, "top left")
    assert answer.usage.cached_tokens > demo.capabilities.image_tokens
    assert says(chat.ask("What color is the square?"), "blue")


@pytest.mark.parametrize(
    ("pictures", "with_the_circle", "with_the_triangle"),
    [
        ([CIRCLE_AND_SQUARE, TRIANGLE], "first", "second"),
        ([TRIANGLE, CIRCLE_AND_SQUARE], "second", "first"),
    ],
    ids=["circle first", "triangle first"],
)
def test_one_of_two_pictures_is_asked_about_in_either_order(
    demo, pictures, with_the_circle, with_the_triangle
):
    def ask(question):
        return gv.answer(demo, pictures, question)

    assert says(ask(f"What color is the circle in the {with_the_circle} picture?"), "red")
    assert says(ask(f"What color is the triangle in the {with_the_triangle} picture?"), "green")


def test_a_picture_of_a_later_turn_is_seen_beside_the_first(demo):
    for order in ([CIRCLE_AND_SQUARE, TRIANGLE], [TRIANGLE, CIRCLE_AND_SQUARE]):
        chat = gv.Chat(demo)
        for picture in order:
            told = chat.ask("Describe this picture.", images=[picture])
            words = "red circle", "blue square"
            assert says(told, *(words if picture is CIRCLE_AND_SQUARE else ["green triangle"]))
        assert says(chat.ask("What color is the square?"), "blue")
        assert says(chat.ask("Where is the blue square?"), "bottom right")


def test_in_a_batch_each_picture_gets_its_own_answer(demo, tmp_path):
    truths = {}
    for colour in ("red", "blue", "green", "yellow"):
        for shape in ("circle", "square", "triangle"):
            drawn((colour, shape, 0.5, 0.5)).save(tmp_path / f"{colour}-{shape}.png")
            truths[f"{colour}-{shape}.png"] = f"{colour} {shape}"
    report = gv.batch(demo, tmp_path, prompt="What is in this picture?")
    told = {item.file: item.text for item in report.items}
    assert told.keys() == truths.keys()
    wrong = {name: told[name] for name, truth in truths.items() if not says(told[name], truth)}
    assert not wrong


def test_what_is_not_there_is_not_made_up(demo):
    assert says(gv.answer(demo, CIRCLE_AND_SQUARE, "Is there a red circle?"), "yes")
    assert says(gv.answer(demo, CIRCLE_AND_SQUARE, "Is there a green triangle?"), "no")
    assert says(gv.answer(demo, TRIANGLE, "Where is the star?"), "can't tell")


def test_it_says_what_it_is_and_how_to_get_more(demo):
    assert says(gv.Chat(demo).ask("Who are you?"), "demo model")
    assert says(gv.Chat(demo).ask("Can you describe photos?"), "4b-it")
    assert says(gv.Chat(demo).ask("Describe this picture."), "no picture")
