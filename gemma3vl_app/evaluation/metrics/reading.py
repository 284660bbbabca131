"""How well text was read: error rates of characters and words, and OCRBench's rule."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from rapidfuzz.distance import Levenshtein

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.metric import Metric, Part, mean_of

# Whose reference is a formula: there, OCRBench looks at characters without the spaces.
FORMULAS = "Handwritten Mathematical Expression Recognition"
# The kinds of OCRBench whose reference is all the text that is shown.
RECOGNITION = frozenset(
    f"{sort} Recognition"
    for sort in (
        *("Regular Text", "Irregular Text", "Artistic Text", "Handwriting"),
        *("Digit String", "Non-Semantic Text"),
    )
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: ord(" ")}


def _error_parts(
    pieces: Callable[[str], Sequence[str]],
) -> Callable[[Sequence[Item], Sequence[str]], list[Part]]:
    """Return parts whose value is the edit distance in `pieces`, and whose weight their number."""

    def part(item: Item, answer: str) -> Part:
        said = pieces(_plain(answer))
        options = [pieces(_plain(each)) for each in item.answers]
        parts = [Part(Levenshtein.distance(said, wanted), len(wanted)) for wanted in options]
        return min(parts, key=lambda each: each.score)

    return lambda items, answers: [part(i, a) for i, a in zip(items, answers, strict=True)]


def _recognition_parts(
    pieces: Callable[[str], Sequence[str]],
) -> Callable[[Sequence[Item], Sequence[str]], list[Part]]:
    """Return the same for items of `RECOGNITION`, letters folded as in `contains`; of others none.

    The references of word sets are in capitals whatever the picture shows.
    """
    errors = _error_parts(lambda text: pieces(_folded(text)))

    def parts(items: Sequence[Item], answers: Sequence[str]) -> list[Part]:
        made = errors(items, answers)
        return [
            part if RECOGNITION.intersection(item.kinds) else Part(0.0, 0.0)
            for item, part in zip(items, made, strict=True)
        ]

    return parts


def _plain(text: str) -> str:
    """Return text with composed characters (NFC), and one space wherever there is white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def contains(item: Item, answer: str) -> float:
    """Return 1 where a reference stands somewhere in the answer (Liu et al. 2024), else 0."""
    plain = _without_spaces if FORMULAS in item.kinds else _folded
    return float(any(plain(wanted) in plain(answer) for wanted in item.answers))


def _without_spaces(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _folded(text: str) -> str:
    return text.translate(_FULL_WIDTH).lower().strip().replace("\n", " ")


CHARACTER_ERRORS = Metric(
    name="cer",
    about="character error rate: all edits by all characters of the references",
    parts=_error_parts(lambda text: text),
    higher_is_better=False,
    weighted=True,
)
WORD_ERRORS = Metric(
    name="wer",
    about="word error rate: all edits by all words of the references",
    parts=_error_parts(str.split),
    higher_is_better=False,
    weighted=True,
)
RECOGNITION_CHARACTER_ERRORS = Metric(
    name="cer",
    about="character error rate of the whole answer, capitals aside, where words are to be read",
    parts=_recognition_parts(lambda text: text),
    higher_is_better=False,
    weighted=True,
)
RECOGNITION_WORD_ERRORS = Metric(
    name="wer",
    about="word error rate of the whole answer, capitals aside, where words are to be read",
    parts=_recognition_parts(str.split),
    higher_is_better=False,
    weighted=True,
)
CONTAINS = Metric(
    name="contains",
    about="a reference stands in the answer, capitals aside (OCRBench's rule)",
    parts=mean_of(contains),
)
