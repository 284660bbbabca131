"""Training data: what trl's SFTTrainer takes, and nothing that is not worth learning from."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.export import export
from gemma3vl_app.export.training import training_lines
from gemma3vl_app.pictures import Picture
from gemma3vl_app.transcript import ROOT, Transcript, Turn
from tests.export.chats import BLUE, EVERYDAY, RED, answer, assistant, hostile, user


def rows(transcript: Transcript, branches: bool = False) -> list[dict]:
    text = training_lines(transcript, "a-pictures", branches).text
    assert text.endswith("\n")
    found = [json.loads(line) for line in text[:-1].split("\n")]
    for row in found:
        check_format(row)
    return found


def check_format(row: dict) -> None:
    """As many places as pictures, and roles as chat templates want them."""
    assert set(row) == {"messages", "images"}
    roles = [message["role"] for message in row["messages"]]
    if roles[0] == "system":
        roles = roles[1:]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    parts = [part for message in row["messages"] for part in message["content"]]
    assert sum(part == {"type": "image"} for part in parts) == len(row["images"])
    assert all(set(p) == {"type", "text"} for p in parts if p["type"] != "image")


def test_the_conversation_shown_is_one_line(tmp_path):
    done = export(EVERYDAY, tmp_path / "a.jsonl")
    (line,) = done.file.read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert row == {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            {
                "role": "user",
                "content": [
                    {"type": "image"},
                    {"type": "image"},
                    {"type": "text", "text": "Which one is red?\nSay why."},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A red one."}]},
            {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "It is."}]},
        ],
        "images": ["a-pictures/01-red.png", "a-pictures/02-blue.png"],
    }
    seen = [Picture.open(tmp_path / path).sha256 for path in row["images"]]
    assert seen == [RED.sha256, BLUE.sha256]


def test_every_branch_is_a_line_of_its_own():
    said = [row["messages"][-1]["content"][0]["text"] for row in rows(EVERYDAY, branches=True)]
    assert said == ["Red.", "Yes.", "It is."]
    systems = {row["messages"][0]["content"][0]["text"] for row in rows(EVERYDAY, branches=True)}
    assert systems == {"Be kind.", "Answer briefly."}


def test_no_line_is_the_beginning_of_another_one():
    turns = (*EVERYDAY.turns, Turn(user("Unanswered"), 1), Turn(user("Unanswered"), 2))
    assert len(rows(Transcript(turns, head=8), branches=True)) == 3
    (row,) = rows(Transcript(turns, head=8))
    assert row["messages"][-1]["content"][0]["text"] == "A red one."


def test_messages_of_one_role_in_a_row_become_one():
    turns = (
        Turn(user(RED, "a"), ROOT),
        Turn(user("b", BLUE), 0),
        answer("c", 1),
        Turn(assistant("d"), 2),
    )
    (row,) = rows(Transcript(turns, head=3))
    asked, said = row["messages"]
    image = {"type": "image"}
    assert asked["content"] == [image, {"type": "text", "text": "a\n\nb"}, image]
    assert said["content"] == [{"type": "text", "text": "c\n\nd"}]


def test_a_conversation_without_an_answer_is_left_out_with_a_note():
    turns = (Turn(user("a"), ROOT), answer("b", 0), Turn(user("c"), ROOT), Turn(assistant("d"), -1))
    document = training_lines(Transcript(turns, head=1), "p", True)
    assert document.text.count("\n") == 1
    assert document.notes == ("1 conversation without a question and an answer left out.",)


@pytest.mark.parametrize("branches", [False, True])
def test_nothing_to_learn_from_is_an_error(branches):
    for turns in ((Turn(user("a"), ROOT),), (Turn(assistant("a"), ROOT),)):
        with pytest.raises(ConversationError, match="Ask something first"):
            training_lines(Transcript(turns, head=0), "p", branches)


def test_cut_answers_are_noted():
    document = training_lines(EVERYDAY, "p", False)
    assert document.notes == (
        "1 conversation with an answer that was cut or stopped: look through them.",
    )


@settings(deadline=None)
@given(st.text(st.characters(), max_size=50))
def test_any_text_is_learned_as_it_is(text):
    (row,) = rows(Transcript((Turn(user(text), ROOT), answer(text, 0)), head=1))
    learned = row["messages"][1]["content"][0]["text"]
    assert learned == re.sub("[\ud800-\udfff]", "\ufffd", text)  # UTF-8 has no half characters


def test_a_hostile_chat_is_data():
    assert len(rows(hostile(), branches=True)) == 2
