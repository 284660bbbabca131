"""What a person does in one browser tab, without a browser."""

from dataclasses import replace

import pytest
from PIL import Image

from gemma3vl_app.errors import EngineError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui.library import Library
from gemma3vl_app.webui.shown_pictures import ShownPictures
from gemma3vl_app.webui.tab import Tab
from gemma3vl_app.webui.view import Draft, Settings


@pytest.fixture
def backend():
    return ScriptedBackend(["Yes."])


@pytest.fixture
def library(backend):
    return Library(lambda: backend)


@pytest.fixture
def open_tab(library, backend, tmp_path):
    pictures = ShownPictures(tmp_path / "shown")
    return lambda id=None, owner="anna": Tab(library, pictures, lambda: backend, owner, id)


@pytest.fixture
def tab(open_tab):
    return open_tab()


@pytest.fixture
def red(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def texts(view):
    return [shown.text for shown in view.messages]


def last(views):
    return list(views)[-1]


def test_a_turn_begins_with_the_question_and_ends_quiet(tab, backend, red):
    backend._seconds_per_chunk = 0.05
    views = list(tab.ask(Draft("What is it?", (red,))))
    assert views[0].answering
    assert views[0].draft == Draft()  # the box is free
    assert texts(views[0])[0] == "What is it?"
    assert texts(views[-1]) == ["What is it?", "Yes."]
    (file,) = views[-1].messages[0].files
    assert Image.open(file).size == (30, 20)
    assert not views[-1].answering
    assert "tokens/s" in views[-1].line
    assert "scripted" in views[-1].details  # which model wrote it
    assert views[0].details == ""


def test_a_tab_that_is_reloaded_shows_the_answer_still_growing(open_tab, backend):
    backend._chunks, backend._seconds_per_chunk = ["word "] * 30, 0.02
    tab = open_tab()
    asking = tab.ask(Draft("Go"))
    while not next(asking).messages[1:]:
        pass
    asking.close()  # the page is gone
    again = list(open_tab(tab.id).watch())
    assert again[0].answering
    assert texts(again[-1])[1].split() == ["word"] * 30


@pytest.mark.parametrize("text", ["", "  \n"])
def test_without_a_question_nothing_is_sent_and_the_pictures_come_back(tab, backend, red, text):
    draft = Draft(text, (red,))
    (view,) = tab.ask(draft)
    assert view.is_error
    assert view.draft == draft
    assert backend.requests == []


def test_what_failed_comes_back_to_be_sent_again(tab, backend, red, tmp_path):
    backend._error = EngineError("The engine broke. Try again.")
    view = last(tab.ask(Draft("Why?", (red,))))
    assert (view.line, view.is_error) == ("The engine broke. Try again.", True)
    assert view.draft == Draft("Why?", (red,))
    assert view.messages == ()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    view = last(tab.ask(Draft("Why?", (red, str(broken)))))
    assert "broken.png" in view.line
    assert view.draft == Draft("Why?", (red, str(broken)))


def test_a_second_question_at_once_is_told_to_wait_and_kept(tab, backend):
    backend._chunks, backend._seconds_per_chunk = ["word "] * 50, 0.02
    asking = tab.ask(Draft("One"))
    next(asking)
    (view,) = tab.ask(Draft("Two"))
    assert "Still answering" in view.line
    assert view.draft == Draft("Two")
    tab.stop()
    list(asking)


def test_tried_again_and_edited_there_are_versions_to_go_through(tab, backend):
    last(tab.ask(Draft("One?")))
    backend._chunks = ["No."]
    view = last(tab.regenerate())
    assert texts(view) == ["One?", "No."]
    assert (view.messages[1].version, view.messages[1].versions) == (1, 2)
    view = last(tab.edit(0, "Two?"))
    assert texts(view) == ["Two?", "No."]
    assert (view.messages[0].version, view.messages[0].versions) == (1, 2)
    assert texts(tab.switch(0, 0)) == ["One?", "No."]
    assert texts(tab.switch(1, 0)) == ["One?", "Yes."]


def test_an_edit_that_is_refused_or_fails_comes_back_into_the_box(tab, backend, red):
    list(tab.ask(Draft("What?", (red,))))
    *_, view = tab.edit(0, "And how?", Settings(temperature=-1))
    assert view.is_error
    assert (view.draft.text, len(view.draft.files)) == ("And how?", 1)
    assert view.messages[0].text == "What?"


def test_the_model_that_answered_is_told_also_when_another_one_answers_next(tab, backend):
    *_, view = tab.ask(Draft("Who?"))
    backend._capabilities = replace(backend.capabilities, model="another")
    assert "another" not in list(tab.watch())[-1].details
    assert backend.capabilities.model not in view.details


def test_undone_the_question_and_its_pictures_are_in_the_box_again(tab, red):
    last(tab.ask(Draft("What is it?", (red,))))
    view = tab.undo()
    assert view.messages == ()
    assert view.draft.text == "What is it?"
    (file,) = view.draft.files
    assert Image.open(file).size == (30, 20)
    assert "nothing to undo" in tab.undo().line


def test_a_cut_answer_can_be_continued_and_a_whole_one_need_not(tab, backend):
    backend._chunks = ["one ", "two ", "three."]
    view = last(tab.ask(Draft("Count"), Settings(max_new_tokens=2)))
    assert view.can_continue
    backend._chunks = ["three."]
    views = list(tab.resume())
    assert texts(views[-1]) == ["Count", "one two three."]
    assert all(text.startswith("one two") for text in (texts(view)[1] for view in views))
    assert not views[-1].can_continue


def test_settings_reach_the_model(tab, backend):
    settings = Settings(
        system="Be brief.", temperature=0.5, top_k=3, top_p=0.8, seed=7, max_new_tokens=9
    )
    last(tab.ask(Draft("Hello"), settings))
    request = backend.requests[0]
    assert request.conversation.system == "Be brief."
    assert request.sampling == Sample(temperature=0.5, top_k=3, top_p=0.8, seed=7)
    assert request.max_new_tokens == 9
    last(tab.ask(Draft("Hello"), Settings(temperature=0)))
    assert backend.requests[1].sampling == Greedy()
    assert backend.requests[1].conversation.system is None


def test_a_setting_that_makes_no_sense_is_told_and_the_question_kept(tab, backend):
    view = last(tab.ask(Draft("Hello"), Settings(temperature=1, top_p=2)))
    assert "top_p" in view.line
    assert view.draft == Draft("Hello")
    assert backend.requests == []


def test_another_conversation_is_shown_and_the_first_goes_on_by_itself(tab, open_tab, backend):
    backend._chunks, backend._seconds_per_chunk = ["word "] * 20, 0.02
    first = tab.id
    asking = tab.ask(Draft("Go"))
    next(asking)
    assert tab.new().messages == ()
    assert list(asking) == []  # nothing of the first one is shown in its place
    assert texts(last(tab.open(first)))[1].split() == ["word"] * 20


def test_deleting_what_is_shown_leaves_a_new_one_and_no_pictures(tab, red):
    (file,) = last(tab.ask(Draft("What?", (red,)))).messages[0].files
    id = tab.id
    assert tab.delete(id).messages == ()
    assert tab.id != id
    with pytest.raises(FileNotFoundError):
        Image.open(file)
    assert "no longer there" in last(tab.open(id)).line


def test_on_demand_each_token_says_how_sure_the_model_was(tab, backend):
    backend._chunks = ["Two ", "words."]
    assert last(tab.ask(Draft("How many?"))).messages[1].tokens == ()
    shown = last(tab.ask(Draft("How many?"), Settings(confidence=True))).messages[-1]
    assert "".join(token.text for token in shown.tokens) == shown.text == "Two words."
    assert all(token.logprob is not None and token.alternatives for token in shown.tokens)


@pytest.mark.parametrize("crops", ["off", "on", "auto"])
def test_crops_are_as_the_settings_say(tab, backend, red, crops):
    last(tab.ask(Draft("What is it?", (red,)), Settings(crops=crops)))
    (picture,) = backend.requests[0].conversation.pictures
    assert picture.crops == crops
