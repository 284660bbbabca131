"""Which answer and which of its tokens a click on a word means."""

from dataclasses import replace

import pytest

from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.messages import Conversation, Message, Text
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES
from gemma3vl_app.traces import TracedToken
from gemma3vl_app.transcript import Transcript, Turn
from gemma3vl_app.webui.written_answer import Clicked, tokens_saying, written_answer
from tests.webui.backends import elsewhere

KNOWN = replace(DEFAULT_CAPABILITIES, tokenizer_sha256="t" * 64, weights="fp32")


class Remembering(ScriptedBackend):
    """Keeps what it is given to remember."""

    def remember(self, conversation, answers, *, adapter=None, session=""):
        self.remembered = (conversation, {n: list(ids) for n, ids in answers.items()}, session)


@pytest.fixture
def backend():
    return Remembering(["red ", "and ", "red"], capabilities=KNOWN)


@pytest.fixture
def chat(backend):
    chat = Chat(backend, session="salt")
    chat.ask("Which?")
    return chat


def click(text, word, *, index=1, occurrence=0):
    start = -1
    for _ in range(occurrence + 1):
        start = text.index(word, start + 1)
    return Clicked(index, start, start + len(word), word)


def found(chat, clicked, backend=None):
    return written_answer(chat.transcript, clicked, backend or chat.backend, "salt")


def tokens(*texts):
    return tuple(TracedToken(n, text) for n, text in enumerate(texts))


@pytest.mark.parametrize(("occurrence", "token"), [(0, 0), (1, 2), (2, 4)])
def test_the_third_red_is_the_third_red(occurrence, token):
    said = tokens("red", " and", " red", " or", " red", ".")
    clicked = click("red and red or red.", "red", occurrence=occurrence)
    assert tokens_saying(said, clicked) == (token,)


@pytest.mark.parametrize(
    ("said", "word", "numbers"),
    [
        (("A", " rec", "tan", "gle", "."), "rectangle", (1, 2, 3)),
        (("(", "red)"), "red", (1,)),
        (("It", "'", "s"), "It's", (0, 1, 2)),
        (("a", " ", "b"), "b", (2,)),
        (("see ", "", "", "🔴", "!"), "🔴", (1, 2, 3)),  # bytes, and the last of them
        (("", "é", "", "è"), "è", (2, 3)),
        (("红色", "的圆"), "圆", (1,)),
    ],
)
def test_a_word_is_all_tokens_that_say_a_part_of_it(said, word, numbers):
    assert tokens_saying(tokens(*said), click("".join(said), word)) == numbers


def test_tokens_that_say_something_else_are_told():
    with pytest.raises(ConversationError, match="slightly different"):
        tokens_saying(tokens("rot"), Clicked(1, 0, 3, "red"))


def test_the_tokens_are_those_that_were_generated(chat):
    asked = found(chat, click("red and red", "red", occurrence=1))
    (generated,) = chat.transcript.turns[1].generated
    assert tuple(token.id for token in asked.answer.tokens) == generated.ids == (0, 1, 2)
    assert asked.tokens == (2,)
    assert asked.answer.text == "red and red"
    assert [message.text for message in asked.conversation.messages] == ["Which?"]
    assert (asked.session, asked.wrote) == ("salt", "")


def test_an_earlier_answer_is_asked_about_after_what_came_before_it_only(chat, backend):
    backend._chunks = ["blue"]
    chat.ask("And now?")
    asked = found(chat, click("red and red", "and"))
    assert len(asked.conversation.messages) == 1
    later = found(chat, click("blue", "blue", index=3))
    assert [m.text for m in later.conversation.messages] == ["Which?", "red and red", "And now?"]


def test_answers_before_it_are_told_with_the_tokens_they_were_written_in(chat, backend):
    chat.ask("And now?")
    opened = Chat.from_transcript(chat.transcript, backend, session="salt")  # as from the disk
    found(opened, click("red and red", "red", index=3))
    conversation, answers, session = backend.remembered
    assert answers == {1: [0, 1, 2]}
    assert (len(conversation.messages), session) == (3, "salt")


def test_of_versions_the_one_that_is_shown_is_meant(chat, backend):
    backend._chunks = ["blue"]
    _ = chat.regenerate().answer
    assert found(chat, click("blue", "blue")).answer.text == "blue"
    chat.switch(1, 0)
    assert found(chat, click("red and red", "red")).answer.text == "red and red"
    with pytest.raises(ConversationError, match="has changed"):
        found(chat, click("blue", "blue"))


def test_an_answer_that_was_gone_on_with_has_the_tokens_of_both_parts(backend):
    chat = Chat(backend)
    chat.ask("Which?", max_new_tokens=2)
    backend._chunks = ["red"]
    _ = chat.resume().answer
    asked = found(chat, click("red and red", "red", occurrence=1))
    assert [token.id for token in asked.answer.tokens] == [0, 1, 0]


def test_it_is_asked_with_the_system_text_and_the_adapter_of_its_time(chat, backend):
    backend.add_adapter("cats", "cats")
    chat.system = "Be brief."
    chat.ask("And now?", adapter="cats")
    chat.system = None
    asked = found(chat, click("red and red", "red", index=3))
    assert (asked.conversation.system, asked.adapter, asked.wrote) == ("Be brief.", "cats", "")
    assert found(chat, click("red and red", "red")).adapter is None


@pytest.mark.parametrize(
    ("changes", "wrote", "brings_tokens"),
    [
        ({"model": "other"}, "scripted, fp32", True),
        ({"weights": "nf4"}, "scripted, fp32", True),
        ({"revision": "2"}, "scripted, fp32", True),
        ({"arithmetic": "elsewhere"}, "", True),
        ({"model": "other", "tokenizer_sha256": "u" * 64}, "scripted, fp32", False),
    ],
)
def test_another_model_is_named_and_tokens_go_with_the_tokenizer(
    chat, changes, wrote, brings_tokens
):
    now = ScriptedBackend(capabilities=replace(KNOWN, **changes))
    asked = found(chat, click("red and red", "red"), now)
    assert asked.wrote == wrote
    assert bool(asked.answer.tokens) == brings_tokens


def test_an_adapter_that_is_gone_is_named(chat, backend):
    backend.add_adapter("cats", "cats")
    chat.ask("And now?", adapter="cats")
    asked = found(chat, click("red and red", "red", index=3), Remembering(capabilities=KNOWN))
    assert (asked.adapter, asked.wrote) == (None, "scripted, fp32 + cats")


def test_an_answer_that_nobody_generated_can_be_explained(backend):
    turns = (
        Turn(Message("user", (Text("Hello"),)), -1),
        Turn(Message("assistant", (Text("Good day"),)), 0),
    )
    asked = written_answer(Transcript(turns, 1), click("Good day", "day"), backend, "")
    assert (asked.tokens, asked.answer.tokens, asked.wrote) == ((1,), (), "")


@pytest.mark.parametrize("index", [-1, 0, 2, 10**9])
def test_only_answers_that_are_shown_can_be_asked_about(chat, index):
    with pytest.raises(ConversationError, match="no longer shown"):
        found(chat, Clicked(index, 0, 3, "red"))


@pytest.mark.parametrize(
    "clicked", [Clicked(1, 0, 3, "blue"), Clicked(1, -1, -1, ""), Clicked(1, 3, 4, " ")]
)
def test_a_word_that_is_not_there_is_told(chat, clicked):
    with pytest.raises(ConversationError, match="has changed"):
        found(chat, clicked)


def test_a_model_elsewhere_is_told(chat):
    with pytest.raises(ConversationError, match="does not run in this process"):
        found(chat, click("red and red", "red"), elsewhere(chat.backend))


def test_the_conversation_is_what_the_backend_is_asked_about(chat):
    assert found(chat, click("red and red", "and")).conversation == Conversation().user("Which?")
