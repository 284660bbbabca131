"""Error rates as the package `jiwer` has them, and OCRBench's rule."""

import random

import jiwer
import pytest

from gemma3vl_app.evaluation.intervals import total
from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.metrics.reading import (
    CHARACTER_ERRORS,
    CONTAINS,
    FORMULAS,
    RECOGNITION,
    RECOGNITION_CHARACTER_ERRORS,
    RECOGNITION_WORD_ERRORS,
    WORD_ERRORS,
)


def item(*answers, kinds=()):
    return Item("1", "Read.", answers, (), kinds)


def test_the_rates_of_many_texts_together_are_those_of_jiwer():
    rng = random.Random(5)
    words = [
        "Total",
        "due",
        "on",
        "receipt",
        "12.50",
        "EUR",
        "thank",
        "you",
        "Müller",
        "&",
        "Söhne",
        "7:30",
        "pm",
    ]
    wanted = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(60)]
    said = [" ".join(w for w in text.split() if rng.random() < 0.8) + " x" for text in wanted]
    items = [item(text) for text in wanted]
    assert total(CHARACTER_ERRORS.score_all(items, said)) == pytest.approx(jiwer.cer(wanted, said))
    assert total(WORD_ERRORS.score_all(items, said)) == pytest.approx(jiwer.wer(wanted, said))


def test_line_breaks_and_composed_characters_are_no_errors():
    parts = CHARACTER_ERRORS.score_all([item("Café\nat  noon")], ["Cafe\u0301 at noon"])
    assert parts[0].value == 0


def test_the_nearest_of_several_references_counts():
    assert CHARACTER_ERRORS.score_all([item("one", "only")], ["only"])[0].score == 0


def test_a_text_without_an_answer_is_all_errors():
    parts = CHARACTER_ERRORS.score_all([item("four"), item("five")], [None, "five"])
    assert total(parts) == 0.5


def test_where_words_are_to_be_read_the_rates_are_those_of_jiwer_without_capitals():
    wanted = ["CENTRE", "THE COFFEE SHOP", "1234", "gklp", "Hello there", "you"]
    said = ["Center", "the coffee", "\uff11\uff12\uff134", "It says GKLP", "hello there", ""]
    items = [item(text, kinds=[kind]) for text, kind in zip(wanted, RECOGNITION, strict=True)]
    low = [text.lower() for text in wanted]
    folded = [text.lower().replace("\uff11\uff12\uff13", "123") for text in said]
    cer = total(RECOGNITION_CHARACTER_ERRORS.score_all(items, said))
    assert cer == pytest.approx(jiwer.cer(low, folded)) and 0.3 < cer < 0.7
    wer = total(RECOGNITION_WORD_ERRORS.score_all(items, said))
    assert wer == pytest.approx(jiwer.wer(low, folded)) and wer != cer


def test_other_kinds_have_no_rates_also_where_the_answer_failed():
    items = [item("7", kinds=["Doc-oriented VQA"]), item("x", kinds=[FORMULAS]), item("y")]
    for metric in (RECOGNITION_CHARACTER_ERRORS, RECOGNITION_WORD_ERRORS):
        assert [part.weight for part in metric.score_all(items, ["7", "z", None])] == [0.0] * 3


@pytest.mark.parametrize(
    ("answers", "said", "kinds", "right"),
    [
        (["CENTRE"], "The sign says: Centre.", (), 1),
        (["CENTRE"], "Center", (), 0),
        (["a b"], "A\nB", (), 1),
        (["one", "two"], "two", (), 1),
        (["\uff11\uff12"], "It is 12", (), 1),  # full width
        (["x ^ { 2 }"], "x^{2}", (FORMULAS,), 1),
        (["X"], "x", (FORMULAS,), 0),
        (["x ^ { 2 }"], "x^{2}", (), 0),
    ],
)
def test_a_reference_has_to_stand_in_the_answer(answers, said, kinds, right):
    parts = CONTAINS.score_all([item(*answers, kinds=kinds)], [said])
    assert parts[0].score == right
