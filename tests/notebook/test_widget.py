"""The chat widget: what is typed, pasted and pressed in it, and the `Chat` behind it."""

import io
from datetime import UTC, datetime

import pytest
from PIL import Image

import gemma3vl_app as gv
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.testing import ScriptedBackend

pytestmark = pytest.mark.notebook

RED = Image.new("RGB", (30, 20), "red")


def png():
    file = io.BytesIO()
    RED.save(file, "png")
    return file.getvalue()


def chosen(name):
    """Return a file as ipywidgets tells of it."""
    told = {"type": "image/png", "size": len(png()), "last_modified": datetime.now(UTC)}
    return {"name": name, "content": memoryview(png()), **told}


def talk(*chunks, **options):
    return gv.notebook.chat(ScriptedBackend(list(chunks) or None, **options))


def ask(widget, text):
    widget._text.value = text
    widget._send.click()
    widget.wait()


def test_what_is_asked_and_answered_is_in_the_chat():
    widget = talk("A red ", "<b>square</b>.")
    widget.add(RED, RED)
    ask(widget, "What is it?")
    asked, answered = widget.chat.conversation.messages
    assert (len(asked.pictures), asked.text) == (2, "What is it?")
    assert answered.text == "A red <b>square</b>."
    assert "&lt;b&gt;square" in widget._talk.value
    assert widget._text.value == "" and widget._shelf.value == ""
    assert "tokens/s" in widget._talk.value


def test_nothing_in_the_chat_is_math():
    assert {"tex2jax_ignore", "mathjax_ignore"} <= set(talk().box._dom_classes)


def test_code_goes_on_with_the_same_chat():
    widget = talk()
    ask(widget, "One")
    widget.chat.ask("Two")
    widget.refresh()
    assert "Two" in widget._talk.value
    assert len(widget.chat.conversation.messages) == 4


def test_a_chat_of_somebodys_is_gone_on_with():
    chat = gv.Chat(ScriptedBackend(), system="Be brief.")
    chat.ask("Hello")
    widget = gv.notebook.chat(chat)
    assert widget.chat is chat and "Hello" in widget._talk.value
    with pytest.raises(ConversationError, match="of its own"):
        gv.notebook.chat(chat, system="Be long.")


def test_chosen_and_pasted_files_are_pictures_of_the_next_question():
    widget = talk()
    widget._upload.value = (chosen("a.png"),)
    widget._paste._handle_custom_msg({"name": "b.png"}, [memoryview(png())])
    assert widget._upload.value == ()
    assert "a.png" in widget._shelf.value and "b.png" in widget._shelf.value
    ask(widget, "Two?")
    assert [p.name for p in widget.chat.conversation.pictures] == ["a.png", "b.png"]


def test_a_file_that_is_no_picture_is_told():
    widget = talk()
    widget._paste._handle_custom_msg({"name": "<b>.png"}, [b"nothing"])
    assert "&lt;b&gt;.png" in widget._line.value
    assert widget._clear.disabled


def test_pictures_can_be_taken_out_again():
    widget = talk()
    widget.add(RED)
    widget._clear.click()
    ask(widget, "Hello")
    assert not widget.chat.conversation.pictures


def test_stop_keeps_what_was_said():
    widget = talk(*["word "] * 1000, seconds_per_chunk=0.01)
    widget._text.value = "Go on"
    widget._send.click()
    assert widget._send.disabled and not widget._stop.disabled
    while "word" not in widget._talk.value:
        assert widget._reading.is_alive()
    widget._stop.click()
    widget.wait()
    assert 0 < widget.chat.conversation.messages[-1].text.count("word") < 1000
    assert not widget._send.disabled and widget._stop.disabled


def test_sampling_is_the_persons_where_they_say_so():
    widget = talk()
    ask(widget, "One")
    widget._temperature.value = "0.5"
    widget._seed.value = "7"
    widget._most.value = 3
    ask(widget, "Two")
    requests = widget.chat.backend.requests
    assert requests[0].sampling == gv.Greedy()
    assert requests[1].sampling == gv.Sample(temperature=0.5, seed=7)
    assert requests[1].max_new_tokens == 3


@pytest.mark.parametrize("temperature", ["warm", "-1"])
def test_sampling_that_cannot_be_is_told_and_nothing_is_sent(temperature):
    widget = talk()
    widget._temperature.value = temperature
    ask(widget, "One")
    assert not widget.chat.backend.requests
    assert temperature in widget._line.value
    assert widget._text.value == "One"


def test_an_empty_question_is_not_sent():
    widget = talk()
    ask(widget, "  ")
    assert "Write a question first" in widget._line.value


def test_an_error_is_told_and_the_question_stays():
    widget = gv.notebook.chat(ScriptedBackend(["A "], error=gv.EngineError("It <broke>.")))
    ask(widget, "One")
    assert "It &lt;broke&gt;." in widget._line.value
    assert not widget._send.disabled
