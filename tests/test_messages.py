"""Conversations are plain values."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma3vl_app.errors import ConversationError, PictureError
from gemma3vl_app.messages import Conversation, Message, Text
from gemma3vl_app.pictures import Picture

PICTURE = Picture.open(np.zeros((4, 6, 3), dtype=np.uint8), name="black.png", crops="on")


def test_equal_content_is_an_equal_value():
    assert Conversation().user("a", PICTURE) == Conversation().user(Text("a"), PICTURE)
    assert hash(Conversation().user("a")) == hash(Conversation().user("a"))
    assert Conversation().user("a") != Conversation(system="s").user("a")


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.none() | st.text(max_size=9))
def test_a_conversation_survives_json(texts, system):
    conversation = Conversation(system=system).user(*texts, PICTURE).assistant("ok").user("b")
    again = Conversation.from_dict(json.loads(json.dumps(conversation.to_dict())))
    assert again == conversation
    assert again.pictures[0].name == "black.png"
    assert again.pictures[0].crops == "on"


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"system": 3, "messages": []},
        {"system": None, "messages": [{"role": "system", "parts": []}]},
        {"system": None, "messages": [{"role": "user", "parts": [{"type": "video"}]}]},
        {"system": None, "messages": [{"role": "user", "parts": [{"type": "text", "text": 3}]}]},
        {"system": None, "messages": 5},
        {"system": None, "messages": [7]},
    ],
)
def test_what_is_no_conversation_is_refused_in_plain_words(damaged):
    with pytest.raises(ConversationError):
        Conversation.from_dict(damaged)


def test_a_damaged_picture_inside_is_refused():
    data = Conversation().user(PICTURE).to_dict()
    data["messages"][0]["parts"][0]["data"] = "AAAA"
    with pytest.raises(PictureError):
        Conversation.from_dict(data)
    data["messages"][0]["parts"][0]["data"] = "no base64!"
    with pytest.raises(ConversationError, match="base64"):
        Conversation.from_dict(data)


def test_only_users_send_pictures():
    with pytest.raises(ConversationError, match="assistant"):
        Message("assistant", (PICTURE,))
