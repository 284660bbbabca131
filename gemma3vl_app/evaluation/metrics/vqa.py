"""VQA accuracy: how many of ten people gave this answer (Antol et al. 2015).

Answers are brought into one form first, by the rules of the official script (GT-Vision-Lab/VQA,
`vqaEval.py`), its oddities included: numbers are comparable with others' only then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.metric import Metric, mean_of

ENOUGH = 3  # people who gave an answer make it fully right

_DIGITS = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"},
    **{"five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_GROUPED = re.compile(r"\d,\d")  # 1,000
_GROUPED_ONCE_OR_MORE = re.compile(r"(?<=\d),+(?=\d)")
_FULL_STOP = re.compile(r"\.(?!\d)")
_STOPS_REMOVED = int(re.UNICODE)  # at most: the script hands a flag over as the count

# The script's table of words without their apostrophes, so far as lower-case words can meet it.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't
shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one(word: str) -> list[str]:
    """Return the spellings of `word` that lack one of its apostrophes."""
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


_CONTRACTIONS = {lacking: word for word in _CONTRACTED.split() for lacking in _without_one(word)}
_CONTRACTIONS |= {"somebody'd": "somebodyd", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at"}
_CONTRACTIONS |= {"'ow'sat": "'ow's'at"}


def vqa_accuracy(item: Item, answer: str) -> float:
    """Return the mean, over leaving out each person in turn, of min(agreeing / 3, 1).

    As in the official script, answers are brought into one form only where people disagree.
    """
    wanted = [_one_line(each) for each in item.answers]
    said = _one_line(answer)
    if len(set(wanted)) > 1:
        wanted, said = [_normalised(each) for each in wanted], _normalised(said)
    return agreement(said, wanted)


def textvqa_accuracy(item: Item, answer: str) -> float:
    """Return the same with TextVQA's own first step: no commas and question marks, always."""
    return agreement(_evalai_form(answer), [_evalai_form(each) for each in item.answers])


def agreement(said: str, wanted: Sequence[str]) -> float:
    """Return the mean of min(agreeing / 3, 1) over all groups that lack one of the people."""
    if len(wanted) == 1:  # nobody to leave out
        return float(said == wanted[0])
    groups = list(combinations(wanted, len(wanted) - 1))
    return sum(min(1.0, group.count(said) / ENOUGH) for group in groups) / len(groups)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalised(text: str) -> str:
    return _words(_unpunctuated(text, _GROUPED))


def _evalai_form(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_unpunctuated(_one_line(text), _GROUPED_ONCE_OR_MORE))


def _unpunctuated(text: str, grouped: re.Pattern[str]) -> str:
    """Take punctuation out where it stands at a word's edge, else put a space in its place."""
    found = text
    has_grouped_digits = grouped.search(text) is not None
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if at_edge or has_grouped_digits else " ")
    return _FULL_STOP.sub("", found, count=_STOPS_REMOVED)


def _words(text: str) -> str:
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


_ABOUT = "min(people who agree / 3, 1), the mean over leaving out each of ten"
VQA_ACCURACY = Metric(name="vqa_accuracy", about=_ABOUT, parts=mean_of(vqa_accuracy))
TEXTVQA_ACCURACY = Metric(name="vqa_accuracy", about=_ABOUT, parts=mean_of(textvqa_accuracy))
