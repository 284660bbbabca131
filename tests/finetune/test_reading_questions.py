import random
from dataclasses import replace

import pytest

from gemma3vl_app.finetune import reading_questions
from gemma3vl_app.finetune.charts import Bar, Chart, random_chart
from gemma3vl_app.scenes.fonts import Face
from gemma3vl_app.scenes.printed import Print, random_print
from gemma3vl_app.scenes.questions import CANNOT_TELL
from gemma3vl_app.tasks.prompts import CAPTION, READ

LATO = Face("Lato")
PRINT = Print(
    *(("Red Apple", "Pie!"), LATO, "blue", "white", "white", "plain", "plain"),
    *(0.1, 1.8, 0.5, 0.5, "left", 0.0, (0.0, 0.0), 1.0),
)
CHART = Chart(
    (Bar("A", "red", 30), Bar("Moss", "blue", 90), Bar("C", "green", 60)),
    *(100, True, False, False, False, LATO, 0.09, 0.6, "black", "white", "plain", 1.0),
)


def printed(*lines: str) -> Print:
    return replace(PRINT, lines=lines)


def answers(kind: str, shown: Print | Chart, tries: int = 400) -> dict[str, str]:
    is_print = isinstance(shown, Print)
    about = reading_questions.ABOUT_PRINT if is_print else reading_questions.ABOUT_CHART
    rng = random.Random(1)
    turns = [about[kind](shown, rng) for _ in range(tries)]
    return {turn.question: turn.answer for turn in turns if turn is not None}


def test_text_is_answered_in_one_line_and_line_by_line_where_the_product_asks_so():
    found = answers("read", PRINT)
    assert found["What does it say?"] == "Red Apple Pie!"
    assert found["Transcribe the text in this picture."] == "Red Apple Pie!"
    assert found[READ["plain"].text] == found[READ["markdown"].text] == "Red Apple\nPie!"
    assert not any("number" in question for question in found)


def test_a_word_and_a_number_are_asked_for_by_name_where_there_is_one():
    assert answers("read", printed("Hello!"))["What word is this?"] == "Hello"
    assert answers("read", printed("Room", "12"))["Which number do you see?"] == "12"
    assert answers("read", printed("$4.50"))["What is the number?"] == "$4.50"
    for lines in (("7 of 12",), ("KX-42",)):
        assert not {"Which number do you see?", "What word is this?"} & set(
            answers("read", printed(*lines))
        )


def test_words_and_lines_are_counted_and_told_by_their_order():
    found = answers("words", PRINT)
    assert found["How many words are there?"] == "Three."
    assert found["How many lines of text are there?"] == "Two."
    assert found["What is the first word?"] == "Red"
    assert found["Which word comes last?"] == "Pie"
    assert not any("word" in question for question in answers("words", printed("Room 12")))
    assert not any("first" in question for question in answers("words", printed("Room")))


def test_colours_are_of_the_text_of_its_background_and_of_a_sign():
    found = answers("text_colour", PRINT)
    assert found["What color is the text?"] == "Blue."
    assert found["What color is the background?"] == "White."
    sign = replace(PRINT, way="sign", background="yellow", surround="green")
    assert answers("text_colour", sign)["What color is the sign?"] == "Yellow."
    assert "What color is the background?" not in answers("text_colour", sign)


def test_prints_are_described_by_their_text_and_colours():
    found = answers("describe_text", PRINT)
    assert found[CAPTION["short"].text] == (
        'The text "Red Apple Pie!" in blue letters on a white background.'
    )
    assert CAPTION["detailed"].text in found
    describe = reading_questions.description
    orange = replace(printed("12"), background="orange", way="sign")
    assert describe(orange) == 'The number "12" in blue letters on an orange sign.'
    assert describe(printed("Hi!")) == 'The word "Hi!" in blue letters on a white background.'
    assert describe(replace(PRINT, fill="graded")).endswith("in blue letters.")


def test_what_a_print_does_not_show_cannot_be_told():
    found = answers("not_there", PRINT)
    assert set(found.values()) == {CANNOT_TELL}
    assert {"What is the price?", "Which number do you see?"} <= set(found)
    assert "What is the price?" not in answers("not_there", printed("$5"))
    assert "Which number do you see?" not in answers("not_there", printed("$5"))
    assert "What time does it say?" not in answers("not_there", printed("10:30"))


def test_the_tallest_and_shortest_bar_are_told_by_label_and_by_colour():
    found = answers("tallest", CHART)
    assert (
        found["Which bar is the tallest?"] == found["Which bar has the highest value?"] == "Moss."
    )
    assert found["Which bar is the shortest?"] == "A."
    assert found["What color is the tallest bar?"] == "Blue."
    lying = replace(CHART, upright=False)
    assert answers("tallest", lying)["Which bar is the longest?"] == "Moss."
    assert not any("tall" in question for question in answers("tallest", lying))


def test_no_bar_is_told_by_a_colour_that_others_have():
    same = replace(CHART, bars=tuple(replace(bar, colour="red") for bar in CHART.bars))
    found = answers("tallest", same) | answers("bars", same)
    assert "What color is the tallest bar?" not in found and "Which bar is red?" not in found
    assert found["What color is bar C?"] == "Red."


def test_bars_are_counted_listed_and_have_colours_and_values():
    found = answers("bars", CHART)
    assert found["How many bars are there?"] == "Three."
    assert found["What are the labels?"] == "A, Moss and C."
    assert found["Which bar is green?"] == "C."
    assert found["What color is bar Moss?"] == "Blue."
    assert not any("value" in question for question in found)
    numbered = replace(CHART, numbered=True)
    assert answers("bars", numbered)["What is the value of bar Moss?"] == "90."


def test_two_bars_are_compared_where_they_clearly_differ():
    found = answers("bar_relation", CHART, tries=2_000)
    assert found["Is bar A taller than bar Moss?"] == "No."
    assert found["Is bar A shorter than bar Moss?"] == "Yes."
    assert found["Which bar is taller, C or A?"] == "C."
    assert found["Is bar C taller or shorter than bar A?"] == "Taller."
    near = replace(CHART, bars=(*CHART.bars[:2], Bar("C", "green", 35)))
    assert not any("A" in q and "C" in q for q in answers("bar_relation", near))


def test_charts_are_described_by_their_labels_and_their_tallest_bar():
    found = answers("describe_chart", CHART)
    assert found[CAPTION["short"].text] == (
        "A bar chart with three bars: A, Moss and C. Moss is the tallest."
    )
    assert found[CAPTION["detailed"].text] == (
        "A bar chart with three bars: A is red, Moss is blue and C is green. "
        "Moss is the tallest and A the shortest."
    )


def test_the_text_of_a_chart_is_read_where_it_has_one_order():
    assert answers("read", CHART)[READ["plain"].text] == "A Moss C"
    assert not answers("read", replace(CHART, numbered=True))
    lying = replace(CHART, numbered=True, upright=False)
    assert answers("read", lying)[READ["plain"].text] == "A 30\nMoss 90\nC 60"


def test_what_a_chart_does_not_show_cannot_be_told():
    found = answers("not_there", CHART)
    assert set(found.values()) == {CANNOT_TELL}
    assert "What is the value of bar Moss?" in found
    assert not any(f"What color is bar {bar.label}?" in found for bar in CHART.bars)
    numbered = answers("not_there", replace(CHART, numbered=True))
    assert "What is the value of bar Moss?" not in numbered


@pytest.mark.usefixtures("needs_fonts")
@pytest.mark.parametrize("draw", [random_print, random_chart])
def test_a_question_about_one_picture_has_one_answer_whatever_the_seed(draw):
    rng = random.Random(2)
    seen: set[str] = set()
    for _ in range(150):
        shown, said = draw(rng), {}
        for _ in range(4):
            for turn in reading_questions.turns(shown, rng, 6):
                assert said.setdefault(turn.question, turn.answer) == turn.answer
                seen.add(turn.kind)
    prints = draw is random_print
    assert seen == set(reading_questions.ABOUT_PRINT if prints else reading_questions.ABOUT_CHART)


def test_the_same_seed_asks_the_same():
    one, other = (reading_questions.turns(CHART, random.Random(4), 5) for _ in range(2))
    assert one == other and len({turn.question for turn in one}) == 5
    assert len(reading_questions.turns(PRINT, random.Random(4), 3)) == 3
