"""What one browser tab holds, without a browser."""

import threading

import numpy as np
from PIL import Image

from gemma3vl_app.pictures import Picture
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui import session as module
from gemma3vl_app.webui.session import Draft, Session


def test_the_views_of_a_turn_begin_with_the_question_and_end_quiet():
    views = list(Session(ScriptedBackend()).ask(Draft("Hello")))
    assert views[0].answering
    assert [shown.text for shown in views[-1].messages] == ["Hello", "Hello"]
    assert not views[-1].answering


def test_clearing_while_a_picture_is_being_read_leaves_an_empty_page(monkeypatch, tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(file)
    backend = ScriptedBackend()
    session = Session(backend)
    read = Picture.open

    def clear_then_read(*arguments, **options):
        session.clear()
        return read(*arguments, **options)

    monkeypatch.setattr(module.Picture, "open", clear_then_read)
    views = list(session.ask(Draft("Old question", (str(file),))))
    assert [view.messages for view in views] == [()]
    assert not views[-1].answering
    assert backend.requests == []


def test_clearing_during_an_answer_ends_with_the_page_as_it_is_now():
    session = Session(ScriptedBackend(["word "] * 100, seconds_per_chunk=0.02))
    views = session.ask(Draft("Old question"))
    next(views)
    session.clear()
    rest = list(views)
    assert rest[-1].messages == ()
    assert not rest[-1].answering


def test_a_second_question_at_once_is_told_to_wait():
    session = Session(ScriptedBackend(["word "] * 100, seconds_per_chunk=0.02))
    first = session.ask(Draft("One"))
    next(view for view in first if len(view.messages) == 2)  # it has begun to answer
    (told,) = session.ask(Draft("Two"))
    assert "Still answering" in told.line
    threading.Thread(target=session.stop).start()
    assert list(first)[-1].messages[0].text == "One"
