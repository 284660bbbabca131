"""Questions about prints and bar charts, with their answers: what the demo model learns to read.

As in `scenes.questions`, answers are short and say only what is certain. Text is answered as it
stands: line by line where that is asked for, else in one line.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from gemma3vl_app.finetune.charts import LEAST_LEAD, Chart
from gemma3vl_app.scenes.printed import Print
from gemma3vl_app.scenes.questions import CANNOT_TELL, Turn
from gemma3vl_app.scenes.scene import SHAPES
from gemma3vl_app.scenes.wording import NUMBERS, article, listed, sentence
from gemma3vl_app.scenes.words import TRAINED_WORDS
from gemma3vl_app.tasks.prompts import CAPTION, READ

_READ = (
    *("What does it say?", "What does the text say?", "Read the text.", "What is written here?"),
    *("Read the text in this picture.", "Transcribe the text in this picture.", "Read this."),
    *("What text do you see?", "What is the text?", "What does this picture say?"),
)
_DESCRIBE = (
    *("Describe this picture.", "Describe the picture.", "What is this?", "What do you see?"),
    *("What is in this picture?", "What does this picture show?"),
)


# --- about a print --------------------------------------------------------------------------------


def read(shown: Print, rng: random.Random) -> Turn:
    """Ask for all of the text, or where it is one word or has one number for that."""
    numbers = [word for word in shown.words if _is_number(word)]
    draw = rng.random()
    if draw < 0.25:
        return Turn("read", _line_by_line(rng), "\n".join(shown.lines))
    if draw < 0.5 and len(shown.words) == 1 and _is_word(shown.words[0]):
        question = rng.choice(("What word is this?", "Which word is this?", "Read the word."))
        return Turn("read", question, _bare(shown.words[0]))
    if draw < 0.5 and len(numbers) == 1:
        question = rng.choice(
            ("Which number do you see?", "What is the number?", "What number is this?")
        )
        return Turn("read", question, numbers[0])
    return Turn("read", rng.choice(_READ), " ".join(shown.words))


def words(shown: Print, rng: random.Random) -> Turn | None:
    """Ask for how many words or lines there are, or for the first or last word."""
    draw = rng.random()
    if draw < 0.25:
        question = rng.choice(("How many lines of text are there?", "How many lines are there?"))
        return Turn("words", question, f"{NUMBERS[len(shown.lines)].capitalize()}.")
    if not all(_is_word(word) for word in shown.words):
        return None
    if draw < 0.6 or len(shown.words) == 1:
        question = rng.choice(("How many words are there?", "How many words do you see?"))
        return Turn("words", question, f"{NUMBERS[len(shown.words)].capitalize()}.")
    first = rng.random() < 0.5
    which = "first" if first else "last"
    question = rng.choice((f"What is the {which} word?", f"Which word comes {which}?"))
    return Turn("words", question, _bare(shown.words[0 if first else -1]))


def text_colour(shown: Print, rng: random.Random) -> Turn:
    """Ask for the colour of the text or of what is behind it."""
    if rng.random() < 0.3 and shown.fill != "graded":
        what = "background" if shown.way != "sign" else "sign"
        question = f"What color is the {what}?"
        return Turn("text_colour", question, f"{shown.background.capitalize()}.")
    question = rng.choice(
        (
            "What color is the text?",
            "What is the color of the text?",
            "What color are the letters?",
            "In which color is it written?",
        )
    )
    return Turn("text_colour", question, f"{shown.colour.capitalize()}.")


def describe_text(shown: Print, rng: random.Random) -> Turn:
    """Ask what there is."""
    question = rng.choice((CAPTION["short"].text, CAPTION["short"].text, *_DESCRIBE))
    if rng.random() < 0.15:
        question = CAPTION["detailed"].text
    return Turn("describe_text", question, description(shown))


def description(shown: Print) -> str:
    """Return such as: The word "Hello" in red letters on a white background."""
    what = "text"
    if len(shown.words) == 1 and not _is_code(shown.words[0]):
        what = "number" if _is_number(shown.words[0]) else "word"
    written = f'the {what} "{" ".join(shown.words)}" in {shown.colour} letters'
    if shown.way == "sign":
        return sentence(f"{written} on {article(shown.background)} sign")
    if shown.fill == "graded":  # of more than one colour
        return sentence(written)
    return sentence(f"{written} on {article(shown.background)} background")


def not_there(shown: Print, rng: random.Random) -> Turn:
    """Ask about something that the picture does not show."""
    text = " ".join(shown.words)
    questions = [f"What color is the {rng.choice(SHAPES)}?", f"Where is the {rng.choice(SHAPES)}?"]
    questions += ["Who wrote this?", "When was this written?"]
    questions += ["What is the price?"] if "$" not in text else []
    questions += ["What time does it say?"] if ":" not in text else []
    if not any(character.isdigit() for character in text):
        questions += ["Which number do you see?", "What is the number?"]
    return Turn("not_there", rng.choice(questions), CANNOT_TELL)


def _line_by_line(rng: random.Random) -> str:
    return READ["plain"].text if rng.random() < 0.8 else READ["markdown"].text


def _is_word(word: str) -> bool:
    return _bare(word).isalpha()


def _is_number(word: str) -> bool:
    return not any(character.isalpha() for character in word)


def _is_code(word: str) -> bool:
    return not _is_word(word) and not _is_number(word)


def _bare(word: str) -> str:
    return word.rstrip("!?.")


# --- about a bar chart ----------------------------------------------------------------------------


def read_chart(chart: Chart, rng: random.Random) -> Turn | None:
    """Ask for all of the text, where there is one order to read it in."""
    if chart.upright and chart.numbered:
        return None
    labels = [bar.label for bar in chart.bars]
    if chart.upright:
        return Turn("read", _line_by_line(rng), " ".join(labels))
    numbers = [f" {bar.value}" if chart.numbered else "" for bar in chart.bars]
    lines = [f"{label}{number}" for label, number in zip(labels, numbers, strict=True)]
    return Turn("read", _line_by_line(rng), "\n".join(lines))


def tallest(chart: Chart, rng: random.Random) -> Turn:
    """Ask which bar is the tallest or shortest, by its label or by its colour."""
    most = rng.random() < 0.6
    bar = chart.tallest if most else chart.shortest
    which = f"{_tall(chart)}est" if most else "shortest"
    if _has_colours(chart) and rng.random() < 0.35:
        question = f"What color is the {which} bar?"
        return Turn("tallest", question, f"{bar.colour.capitalize()}.")
    question = rng.choice(
        (
            f"Which bar is the {which}?",
            f"Which bar is {which}?",
            f"What is the label of the {which} bar?",
            f"Which bar has the {'highest' if most else 'lowest'} value?",
        )
    )
    return Turn("tallest", question, f"{bar.label}.")


def bars(chart: Chart, rng: random.Random) -> Turn:
    """Ask for how many bars there are, their labels, or one's colour or value."""
    draw, bar = rng.random(), rng.choice(chart.bars)
    if draw < 0.35:
        question = rng.choice(("How many bars are there?", "How many bars does the chart have?"))
        return Turn("bars", question, f"{NUMBERS[len(chart.bars)].capitalize()}.")
    if draw < 0.5:
        question = rng.choice(("What are the labels?", "What are the bars called?"))
        return Turn("bars", question, f"{listed([each.label for each in chart.bars])}.")
    if draw < 0.65 and chart.numbered:
        question = rng.choice(
            (f"What is the value of bar {bar.label}?", f"What number belongs to bar {bar.label}?")
        )
        return Turn("bars", question, f"{bar.value}.")
    if draw < 0.8 and _has_colours(chart):
        return Turn("bars", f"Which bar is {bar.colour}?", f"{bar.label}.")
    return Turn("bars", f"What color is bar {bar.label}?", f"{bar.colour.capitalize()}.")


def bar_relation(chart: Chart, rng: random.Random) -> Turn | None:
    """Ask how the heights of two bars compare, where they clearly differ."""
    one, other = rng.sample(chart.bars, 2)
    if abs(one.value - other.value) < LEAST_LEAD * chart.top:
        return None
    tall, higher = _tall(chart), one.value > other.value
    first, second = f"bar {one.label}", f"bar {other.label}"
    draw = rng.random()
    if draw < 0.3:
        answer = one.label if higher else other.label
        question = f"Which bar is {tall}er, {one.label} or {other.label}?"
        return Turn("bar_relation", question, f"{answer}.")
    if draw < 0.5:
        question = f"Is {first} {tall}er or shorter than {second}?"
        return Turn("bar_relation", question, f"{tall}er.".capitalize() if higher else "Shorter.")
    asked_higher = rng.random() < 0.6
    question = f"Is {first} {f'{tall}er' if asked_higher else 'shorter'} than {second}?"
    return Turn("bar_relation", question, "Yes." if asked_higher == higher else "No.")


def describe_chart(chart: Chart, rng: random.Random) -> Turn:
    """Ask what there is."""
    question = rng.choice((CAPTION["short"].text, CAPTION["short"].text, *_DESCRIBE))
    if rng.random() < 0.2:
        return Turn("describe_chart", CAPTION["detailed"].text, chart_description(chart, long=True))
    return Turn("describe_chart", question, chart_description(chart))


def chart_description(chart: Chart, *, long: bool = False) -> str:
    """Return such as: A bar chart with three bars: A, B and C. B is the tallest."""
    number, tall = NUMBERS[len(chart.bars)], _tall(chart)
    names = [bar.label for bar in chart.bars]
    if not long:
        start = f"A bar chart with {number} bars: {listed(names)}."
        return f"{start} {chart.tallest.label} is the {tall}est."
    start = f"A bar chart with {number} {chart.bars[0].colour} bars: {listed(names)}."
    if _has_colours(chart):
        names = [f"{bar.label} is {bar.colour}" for bar in chart.bars]
        start = f"A bar chart with {number} bars: {listed(names)}."
    ends = f"{chart.tallest.label} is the {tall}est and {chart.shortest.label} the shortest."
    return f"{start} {ends}"


def not_in_chart(chart: Chart, rng: random.Random) -> Turn:
    """Ask about something that the chart does not show."""
    known = {bar.label for bar in chart.bars}
    absent = rng.choice([each for each in (*"ABCDEFXYZ", *_OTHERS) if each not in known])
    questions = [f"What color is bar {absent}?", f"What is the value of bar {absent}?"]
    questions += ["Who made this chart?", "What is the title of the chart?"]
    if not chart.numbered:
        questions.append(f"What is the value of bar {rng.choice(chart.bars).label}?")
    return Turn("not_there", rng.choice(questions), CANNOT_TELL)


_OTHERS = tuple(word.capitalize() for word in TRAINED_WORDS if len(word) <= 4)


def _tall(chart: Chart) -> str:
    return "tall" if chart.upright else "long"


def _has_colours(chart: Chart) -> bool:
    """Tell whether each bar has a colour of its own."""
    return len({bar.colour for bar in chart.bars}) == len(chart.bars)


# --- several questions ----------------------------------------------------------------------------


ABOUT_PRINT: dict[str, Callable[[Print, random.Random], Turn | None]] = {
    "read": read,
    "words": words,
    "text_colour": text_colour,
    "describe_text": describe_text,
    "not_there": not_there,
}
ABOUT_CHART: dict[str, Callable[[Chart, random.Random], Turn | None]] = {
    "tallest": tallest,
    "bars": bars,
    "bar_relation": bar_relation,
    "describe_chart": describe_chart,
    "read": read_chart,
    "not_there": not_in_chart,
}
PRINT_SHARES: Mapping[str, float] = {
    **{"read": 10, "words": 3, "text_colour": 3, "describe_text": 3, "not_there": 2},
}
_CHART_SHARES: Mapping[str, float] = {
    **{"tallest": 6, "bars": 6, "bar_relation": 5, "describe_chart": 3, "read": 1, "not_there": 2},
}
_TRIES = 20  # for each question


def turns(
    shown: Print | Chart,
    rng: random.Random,
    number: int,
    print_shares: Mapping[str, float] = PRINT_SHARES,
) -> list[Turn]:
    """Return `number` different turns on a print or a chart, or fewer where no more are found."""
    ask: Callable[[str], Turn | None]
    if isinstance(shown, Print):
        shares, ask = print_shares, lambda kind: ABOUT_PRINT[kind](shown, rng)
    else:
        shares, ask = _CHART_SHARES, lambda kind: ABOUT_CHART[kind](shown, rng)
    printed = _printed(shown)
    asked: dict[str, Turn] = {}
    for _ in range(_TRIES * number):
        kind = rng.choices(list(shares), weights=list(shares.values()))[0]
        turn = ask(kind)
        if turn is not None and len(asked) < number:
            asked.setdefault(turn.question, replace(turn, printed=printed))
    return list(asked.values())


def _printed(shown: Print | Chart) -> tuple[str, ...]:
    """Return the words of a picture, also without what ends a sentence."""
    if isinstance(shown, Print):
        return tuple(dict.fromkeys(each for word in shown.words for each in (word, _bare(word))))
    values = [str(bar.value) for bar in shown.bars] if shown.numbered else []
    return tuple(dict.fromkeys([*(bar.label for bar in shown.bars), *values]))
