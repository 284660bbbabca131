"""The table of suites, and what each asks."""

import pytest

from gemma3vl_app.errors import EvaluationError
from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.suites import SUITES, find_suite


def test_the_published_prompts():
    item = Item("1", "Which {braces} are there?", ("A",), ())
    told = {name: suite.ask(item) for name, suite in SUITES.items()}
    assert told["docvqa"] == (
        "Which {braces} are there?\nAnswer the question using a single word or phrase."
    )
    assert told["chartqa"].endswith("\nAnswer the question with a single word.")
    assert told["ocrbench"] == "Which {braces} are there?"
    assert told["coco"] == "Provide a one-sentence caption for the provided image."


def test_options_are_lettered_and_a_question_without_any_is_asked_freely():
    mmmu = SUITES["mmmu"]
    asked = mmmu.ask(Item("1", "Which?", ("B",), (), (), ("red", "blue")))
    assert asked == (
        "Which?\nA. red\nB. blue\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    free = mmmu.ask(Item("1", "How many?", ("3",), ()))
    assert free == "How many?\n\nAnswer the question using a single word or phrase."


def test_every_suite_has_data_draws_or_says_that_it_needs_some():
    needing = {n for n, suite in SUITES.items() if not (suite.published or suite.drawn)}
    assert needing == {"reading"}


def test_a_suite_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(EvaluationError, match=r"no suite 'docvqs'. There are: docvqa, .*scenes"):
        find_suite("docvqs")
