"""An answer that grows below a cell; interrupts stop the model and keep what it said."""

import threading

import pytest

import gemma3vl_app as gv
from gemma3vl_app.errors import EngineError
from gemma3vl_app.notebook import live, show
from gemma3vl_app.testing import ScriptedBackend


class Cell:
    """What stands below a cell: one output, replaced in place."""

    def __init__(self):
        self.outputs = []

    def output(self, first):
        self.outputs.append([first])
        return self.outputs[-1].append


@pytest.fixture
def cell(monkeypatch):
    cell = Cell()
    monkeypatch.setattr(live, "in_jupyter", lambda: True)
    monkeypatch.setattr(live, "output", cell.output)
    return cell


def test_one_output_is_replaced_in_place_until_it_is_the_answer(cell):
    chat = gv.Chat(ScriptedBackend(["A red ", "<b>circle</b>."]))
    show(chat.stream("What is it?"))
    (shown,) = cell.outputs
    assert "&lt;b&gt;circle" in shown[-1].html and "<details" in shown[-1].html
    assert chat.conversation.messages[-1].text == "A red <b>circle</b>."


def test_an_interrupt_stops_the_model_and_keeps_what_it_said(cell, monkeypatch):
    backend = ScriptedBackend(["A ", *["very "] * 500], seconds_per_chunk=0.01)
    chat = gv.Chat(backend)
    plain = live.growing

    def interrupted(stream):
        for said in plain(stream):
            yield said
            if said[0].count("very") >= 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(live, "growing", interrupted)
    with pytest.raises(KeyboardInterrupt):
        show(chat.stream("Go on"))
    said = chat.conversation.messages[-1].text
    assert said.startswith("A very very ") and said.count("very") < 500
    assert backend.running == 0
    assert "Stopped" in cell.outputs[0][-1].html or "stopped" in cell.outputs[0][-1].html


def test_an_error_leaves_what_was_said(cell):
    chat = gv.Chat(ScriptedBackend(["A red "], error=EngineError("It broke.")))
    with pytest.raises(EngineError):
        show(chat.stream("What is it?"))
    assert "A red" in cell.outputs[0][-1].html


def test_in_a_terminal_the_answer_is_printed(capsys):
    show(gv.Chat(ScriptedBackend(["A \x1b[31mred ", "circle."])).stream("What is it?"))
    said = capsys.readouterr().out
    assert "red circle.\n(" in said and "\x1b" not in said


def test_an_interrupt_while_a_stream_is_waited_for_stops_the_model():
    stream = gv.Stream()
    stream._changed = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert stream.cancelled


class Interrupted(threading.Condition().__class__):
    """A wait during which somebody presses Ctrl-C."""

    def wait_for(self, predicate, timeout=None):
        raise KeyboardInterrupt
