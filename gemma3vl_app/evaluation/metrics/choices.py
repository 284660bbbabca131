"""Multiple choice: the letter that was chosen, or what a free answer says (MMMU, Yue et al. 2024).

An answer is a letter's text, or JSON of each letter's log-probability (see `letters`).
"""

from __future__ import annotations

import json
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
    """Return the letter that an answer chooses; "" where it chooses none."""
    if logprobs := logprobs_in(answer, item.letters):
        return max(logprobs, key=lambda letter: logprobs[letter])
    return parsed(answer, item.options, item.letters)


def logprobs_in(answer: str, letters: str) -> dict[str, float]:
    """Return what JSON such as {"A": -1.2, "B": -0.3} says of all `letters`; else nothing."""
    try:
        found = json.loads(answer) if letters and answer.startswith("{") else None
    except (ValueError, RecursionError):  # a model may write anything
        return {}
    if not isinstance(found, dict) or "".join(found) != letters:
        return {}
    return found if all(isinstance(each, float) and each <= 0 for each in found.values()) else {}


def parsed(answer: str, options: tuple[str, ...], letters: str) -> str:
    """Return the letter in a written answer: "(B)", then "B", then the text of an option.

    Where there are several, the last one counts, as in MMMU's own script; where there is none, the
    answer is wrong, while that script guesses.
    """
    in_brackets = re.findall(rf"\(([{letters}])\)", answer)
    alone = re.findall(rf"(?<![\w'])([{letters}])(?![\w'])", answer)
    if found := in_brackets or alone:
        return str(found[-1])
    said = answer.lower()
    places = {
        letter: said.rfind(option.lower())
        for letter, option in zip(letters, options, strict=True)
        if option and option.lower() in said
    }
    return max(places, key=lambda letter: places[letter]) if places else ""


def _agrees(answer: str, wanted: str) -> bool:
    """Whether the end of a free answer has the number or the text that is wanted."""
    last_line = answer.rstrip(". \n").rpartition("\n")[2]
    tail = _LEAD.sub("", last_line)
    if (number := _as_number(wanted)) is not None:
        return number in [_as_number(each) for each in _NUMBER.findall(tail)]
    return re.search(rf"(?<!\w){re.escape(wanted.lower())}(?!\w)", tail.lower()) is not None


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
