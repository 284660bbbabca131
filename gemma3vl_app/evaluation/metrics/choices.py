"""Multiple choice: the letter that was chosen, or what a free answer says (MMMU, Yue et al. 2024).

Where letters were weighed (see `letters`), the answer is the likeliest of them.
"""

from __future__ import annotations

import re

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.metric import Metric, mean_of

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d+)?")
_LEAD = re.compile(r".*(?:\banswer\b|\bis\b|\bthus\b|\btherefore\b|=|:)", re.IGNORECASE)


def is_chosen(item: Item, answer: str) -> float:
    """Return 1 where the right option was chosen, or a free answer is the right one, else 0."""
    if item.options:
        return float(chosen(item, answer) in item.answers)
    return float(any(_agrees(answer, wanted) for wanted in item.answers))


def chosen(item: Item, answer: str) -> str:
    """Return the letter in a written answer: "(B)", then "B", then the text of an option.

    Where there are several, the last one counts, as in MMMU's own script; where there is none, the
    answer is wrong, while that script guesses.
    """
    answer = answer.strip("'\"")  # 'B'
    in_brackets = re.findall(rf"\(([{item.letters}])\)", answer)
    alone = re.findall(rf"(?<![\w'])([{item.letters}])(?![\w'])", answer)
    if found := in_brackets or alone:
        return str(found[-1])
    said = answer.lower()
    places = {
        letter: said.rfind(option.lower())
        for letter, option in zip(item.letters, item.options, strict=True)
        if option and option.lower() in said
    }
    return max(places, key=lambda letter: places[letter]) if places else ""


def _agrees(answer: str, wanted: str) -> bool:
    """Whether the last line of a free answer ends in the number, or has the text, that is wanted.

    A text is looked for in the whole line, since it may have a colon or "=" itself.
    """
    last_line = answer.rstrip(". \n").rpartition("\n")[2]
    if (number := _as_number(wanted)) is not None:
        tail = _LEAD.sub("", last_line)
        return number in [_as_number(each) for each in _NUMBER.findall(tail)]
    return re.search(rf"(?<!\w){re.escape(wanted.lower())}(?!\w)", last_line.lower()) is not None


def _as_number(text: str) -> float | None:
    try:
        return round(float(text.replace(",", "")), 2)
    except ValueError:
        return None


CHOICE_ACCURACY = Metric(
    name="accuracy",
    about="the right option was chosen, or a free answer is the right one",
    parts=mean_of(is_chosen),
)
