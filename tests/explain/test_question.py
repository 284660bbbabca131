"""What is explained: which answer, and which of its tokens some words are."""

import numpy as np
import pytest

from gemma3vl_app import explain
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.explain.question import question
from gemma3vl_app.testing import ScriptedBackend


@pytest.mark.parametrize(
    ("words", "chosen", "said"),
    [
        ("red", (1,), "red"),  # the first
        (" red circle", (1, 2), "red circle"),
        ("circ", (2,), "circle"),  # a token is taken whole
        (5, (5,), "red"),  # the second, by its number
        (["circle", "square"], (2, 6), "circle … square"),
        ([0, "red"], (0, 1), "A red"),
        (range(2), (0, 1), "A red"),
        (None, tuple(range(8)), "A red circle and a red square."),
    ],
)
def test_words_are_found_in_the_answer(stand_in, talk, answer, words, chosen, said):
    asked = question(stand_in, talk, answer, words)
    assert asked.chosen == chosen
    assert asked.words == said


@pytest.mark.parametrize("words", ["purple", "", "  "])
def test_words_that_were_not_said_are_refused_with_what_was(stand_in, talk, answer, words):
    with pytest.raises(ConversationError, match="It says: A red circle"):
        question(stand_in, talk, answer, words)


def test_a_conversation_may_or_may_not_end_with_the_answer(stand_in, talk, answer):
    whole = talk.assistant(answer.text)
    for asked in (
        question(stand_in, talk, answer),
        question(stand_in, whole, answer),
        question(stand_in, whole, None),
        question(stand_in, whole, answer.text),
    ):
        assert asked.conversation == talk
        assert len(asked.tokens) == 8


def test_an_earlier_answer_is_explained_where_it_was_given(stand_in, talk, answer):
    gone_on = talk.assistant(answer.text).user("And now?").assistant("Something else.")
    assert question(stand_in, gone_on, answer).conversation == talk
    assert question(stand_in, gone_on.user("Why?"), answer).conversation == talk


def test_an_answer_that_was_not_given_there_is_refused_not_glued_on(stand_in, talk, answer):
    with pytest.raises(ConversationError, match="ends with another answer"):
        question(stand_in, talk.assistant("Something else."), answer)


def test_numbers_of_tokens_may_come_from_numpy(stand_in, talk, answer):
    assert question(stand_in, talk, answer, np.int64(5)).chosen == (5,)
    assert question(stand_in, talk, answer, np.array([2, 1])).chosen == (1, 2)


def test_without_any_answer_there_is_nothing_to_explain(stand_in, talk):
    with pytest.raises(ConversationError, match="does not end with an answer"):
        question(stand_in, talk, None)


def test_adapter_and_session_go_to_the_backend(stand_in, talk, answer):
    explain.attention(stand_in, talk, answer, adapter="mine", session="salt")
    assert stand_in.options == [("mine", "salt")]


def test_a_model_that_runs_elsewhere_cannot_be_looked_into(talk, answer):
    class Elsewhere:
        capabilities = ScriptedBackend().capabilities

    with pytest.raises(ConversationError, match="does not run in this process"):
        explain.attention(Elsewhere(), talk, answer)
