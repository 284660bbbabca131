"""The chat widget: what is typed, pasted and pressed in it, and the `Chat` behind it."""

import io
import time

import pytest
from PIL import Image

import gemma3vl_app as gv
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.notebook import thumbnails
from gemma3vl_app.testing import ScriptedBackend

pytestmark = pytest.mark.notebook

RED = Image.new("RGB", (30, 20), "red")


def png():
    file = io.BytesIO()
    RED.save(file, "png")
    return file.getvalue()


def bring(widget, name, *pieces):
    """Do what the browser does with a file that is chosen, pasted or dropped."""
    for n, piece in enumerate(pieces, start=1):
        content = {"id": name, "name": name, "last": n == len(pieces)}
        widget._input._handle_custom_msg(content, [memoryview(piece)])


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
    assert "Two" in widget._talk.value
    assert len(widget.chat.conversation.messages) == 4


def test_what_others_ask_and_hear_is_shown_at_once():
    widget = talk("A red square.")
    stream = widget.chat.stream("From the <page>")
    assert "From the &lt;page&gt;" in widget._talk.value
    assert stream.answer.text
    until = time.monotonic() + 10
    while "A red square." not in widget._talk.value:
        assert time.monotonic() < until
        time.sleep(0.01)
    widget.chat.undo()
    assert "From the" not in widget._talk.value


def test_pictures_are_not_drawn_anew_with_every_turn(monkeypatch):
    drawn = []
    encoded = thumbnails._encoded
    monkeypatch.setattr(
        thumbnails, "_encoded", lambda *args, **how: drawn.append(args) or encoded(*args, **how)
    )
    widget = talk()
    widget.add(Image.new("RGB", (31, 17), "green"))
    ask(widget, "One")
    ask(widget, "Two")  # the one in the box, equal to the one in the chat, is gone by now
    before = len(drawn)
    ask(widget, "Three")
    assert 0 < before == len(drawn)


def test_a_chat_of_somebodys_is_gone_on_with():
    chat = gv.Chat(ScriptedBackend(), system="Be brief.")
    chat.ask("Hello")
    widget = gv.notebook.chat(chat)
    assert widget.chat is chat and "Hello" in widget._talk.value
    with pytest.raises(ConversationError, match="of its own"):
        gv.notebook.chat(chat, system="Be long.")


def test_files_from_the_browser_are_pictures_of_the_next_question():
    widget = talk()
    bring(widget, "a.png", png())
    bring(widget, "b.png", png()[:20], png()[20:])
    assert "a.png" in widget._shelf.value and "b.png" in widget._shelf.value
    ask(widget, "Two?")
    assert [p.name for p in widget.chat.conversation.pictures] == ["a.png", "b.png"]


def test_pieces_of_files_that_come_at_once_are_told_apart():
    widget, half = talk(), len(png()) // 2
    for n, piece in enumerate((png()[:half], png()[half:])):
        for name in ("a.png", "b.png"):
            content = {"id": name, "name": name, "last": n == 1}
            widget._input._handle_custom_msg(content, [memoryview(piece)])
    ask(widget, "Two?")
    assert [p.name for p in widget.chat.conversation.pictures] == ["a.png", "b.png"]


def test_a_file_that_is_too_large_is_told_and_not_sent():
    widget = talk()
    widget._input._handle_custom_msg({"name": "<b>.png", "bytes": 30 << 20}, [])
    assert "&lt;b&gt;.png" in widget._line.value
    assert "30.0 MiB; the limit is 25.0 MiB" in widget._line.value
    assert str(25 << 20) in widget._input._esm


def test_enter_sends_what_stands_in_the_box():
    widget = talk()
    widget._input._handle_custom_msg({"question": "What is it?"}, [])
    widget.wait()
    assert widget.chat.conversation.messages[0].text == "What is it?"
    assert widget._text.value == ""


def test_what_enter_cannot_send_stays_in_the_box():
    widget = talk()
    widget._settings._seed.value = "x"
    widget._input._handle_custom_msg({"question": "What is it?"}, [])
    assert widget._text.value == "What is it?" and not widget.chat.conversation.messages


def test_a_file_that_is_no_picture_is_told():
    widget = talk()
    bring(widget, "<b>.png", b"nothing")
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


def test_settings_are_the_persons_where_they_say_so():
    widget = talk()
    widget.add(RED)
    ask(widget, "One")
    settings = widget._settings
    settings._temperature.value, settings._seed.value = "0.5", "7"
    settings._top_k.value, settings._top_p.value = "3", "0.5"
    settings._most.value, settings._crops.value = 4, "on"
    widget.add(RED)
    ask(widget, "Two")
    first, second = widget.chat.backend.requests
    assert first.sampling == gv.Greedy()
    assert second.sampling == gv.Sample(temperature=0.5, top_k=3, top_p=0.5, seed=7)
    assert second.max_new_tokens == 4
    assert [picture.crops for picture in second.conversation.pictures] == ["auto", "on"]


def test_what_is_not_set_is_as_the_chat_has_it_and_temperature_0_is_greedy():
    own = gv.Sample(temperature=0.3, top_k=5, top_p=0.6)
    widget = gv.notebook.chat(gv.Chat(ScriptedBackend(), sampling=own))
    widget._settings._top_k.value = "9"
    ask(widget, "One")
    widget._settings._temperature.value = "0"
    ask(widget, "Two")
    first, second = (request.sampling for request in widget.chat.backend.requests)
    assert (first.temperature, first.top_k, first.top_p) == (0.3, 9, 0.6)
    assert second == gv.Greedy()


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("_temperature", "warm", "Temperature is &#x27;warm&#x27;; it must be a number, such as"),
        ("_temperature", "-1", "temperature is -1.0; it must be above 0"),
        ("_top_k", "1.5", "Top-k is &#x27;1.5&#x27;; it must be a whole number, such as 64."),
        ("_top_p", "2", "top_p is 2.0; it must be above 0 and at most 1."),
        ("_seed", "x", "Seed is &#x27;x&#x27;; it must be a whole number"),
    ],
)
def test_a_setting_that_cannot_be_is_told_and_nothing_is_sent(field, value, line):
    widget = talk()
    getattr(widget._settings, field).value = value
    ask(widget, "One")
    assert not widget.chat.backend.requests
    assert line in widget._line.value
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
