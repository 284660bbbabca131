"""Why a word is there, as one open page asks for it."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from gemma3vl_app.errors import EngineError
from gemma3vl_app.explain import Heat, HeatMap
from gemma3vl_app.pictures import Picture
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.traces import Attention, Distributions, Occlusion, Saliency
from gemma3vl_app.webui.explanation import drawings_of
from gemma3vl_app.webui.library import Library
from gemma3vl_app.webui.live_chat import OUR_FAULT
from gemma3vl_app.webui.shown_pictures import ShownPictures
from gemma3vl_app.webui.tab import Tab
from gemma3vl_app.webui.view import Draft
from gemma3vl_app.webui.written_answer import Clicked
from tests.webui.backends import elsewhere

RED = Clicked(1, 2, 5, "red")
CIRCLE = Clicked(1, 6, 12, "circle")


@pytest.fixture
def backend():
    return ScriptedBackend(["A ", "red ", "circle."])


@pytest.fixture
def library(backend):
    return Library(lambda: backend)


@pytest.fixture
def open_tab(library, backend, tmp_path):
    pictures = ShownPictures(tmp_path / "shown")
    return lambda id=None, owner="anna": Tab(library, pictures, lambda: backend, owner, id)


@pytest.fixture
def tab(open_tab, tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    tab = open_tab()
    list(tab.ask(Draft("What?", (str(tmp_path / "red.png"),))))
    return tab


def last(views):
    return list(views)[-1]


def wait_until(true):
    until = time.monotonic() + 5
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def running():
    return [each for each in threading.enumerate() if each.name == "explanation"]


@pytest.mark.parametrize(
    ("method", "kind"),
    [("attention", Attention), ("saliency", Saliency), ("occlusion", Occlusion)],
)
def test_each_method_shows_where_and_how_sure(tab, backend, method, kind):
    found = last(tab.explain(RED, method))
    assert (found.is_over, found.error) == (True, "")
    (token,) = found.tokens
    assert (token.text, token.logprob) == ("red ", -0.5)
    assert len(token.alternatives) == 5
    (drawing,) = found.drawings
    corner, far = drawing.image.getpixel((2, 2)), drawing.image.getpixel((57, 37))
    assert corner[0] - corner[2] > far[0] - far[2]  # more orange where it looked
    assert found.exactly
    asked = [trace.asked for trace in backend.traces]
    assert [type(each) for each in asked] == [Distributions, kind]
    assert asked[1].tokens == (1,)


def test_the_salt_is_that_of_the_chat_and_anothers_is_another(tab, open_tab, backend):
    last(tab.explain(RED, "attention"))
    assert {trace.session for trace in backend.traces} == {backend.requests[0].session}
    other = open_tab(owner="ben")
    list(other.ask(Draft("What?")))
    last(other.explain(RED, "attention"))
    assert backend.traces[-1].session == backend.requests[1].session != backend.requests[0].session


def test_without_a_picture_only_the_certainty_is_told(open_tab, backend):
    tab = open_tab()
    list(tab.ask(Draft("What?")))
    found = last(tab.explain(RED, "attention"))
    assert (len(found.tokens), found.drawings, found.error) == (1, (), "")
    assert [type(trace.asked) for trace in backend.traces] == [Distributions]


def test_progress_is_told_and_a_stop_ends_it(tab, backend):
    backend._seconds_per_chunk = 0.05
    watching = tab.explain(RED, "occlusion")
    while not (found := next(watching)).done:
        pass
    assert found.total == 49
    assert found.tokens  # how sure it was is there before
    tab.leave()
    found = last(watching)
    assert (found.is_over, found.was_stopped, found.drawings) == (True, True, ())
    wait_until(lambda: not running())


def test_leaving_an_earlier_one_does_not_end_the_next(tab, backend):
    backend._seconds_per_chunk = 0.02
    first = tab.explain(RED, "occlusion", 1)
    next(first)
    second = tab.explain(CIRCLE, "occlusion", 2)
    next(second)
    tab.leave(1)  # as it comes in late
    found = last(second)
    assert (found.was_stopped, len(found.drawings)) == (False, 1)


def test_another_word_ends_the_one_before_and_never_two_run(tab, backend):
    backend._seconds_per_chunk = 0.05
    first = tab.explain(RED, "occlusion")
    while not next(first).done:
        pass
    second = tab.explain(CIRCLE, "attention")
    next(second)
    assert list(first) == []  # nothing more is shown of it
    assert [token.text for token in last(second).tokens] == ["circle."]
    kinds = [type(trace.asked) for trace in backend.traces]
    assert kinds == [Distributions, Occlusion, Distributions, Attention]


def test_a_page_that_is_gone_ends_it(tab, backend):
    backend._seconds_per_chunk = 0.05
    watching = tab.explain(RED, "occlusion")
    while not next(watching).done:
        pass
    watching.close()
    wait_until(lambda: not running())


def test_another_conversation_ends_it(tab, backend):
    backend._seconds_per_chunk = 0.05
    watching = tab.explain(RED, "occlusion")
    next(watching)
    tab.new()
    assert list(watching) == []
    wait_until(lambda: not running())


def test_answers_go_on_meanwhile(tab, backend):
    backend._seconds_per_chunk = 0.02
    watching = tab.explain(RED, "occlusion")
    next(watching)
    assert last(tab.ask(Draft("And now?"))).messages[-1].text == "A red circle."
    assert last(watching).drawings


def test_a_running_answer_has_no_words_to_explain_yet(tab, backend):
    backend._seconds_per_chunk = 0.2
    asking = tab.ask(Draft("And now?"))
    next(asking)
    assert "no longer shown" in last(tab.explain(Clicked(3, 0, 1, "A"), "attention")).error
    tab.stop()
    list(asking)


def test_what_fails_is_one_line(tab, backend):
    backend._error = EngineError("The engine broke. Try again.")
    assert last(tab.explain(RED, "attention")).error == "The engine broke. Try again."
    backend._error = ValueError("a bug")
    found = last(tab.explain(RED, "attention"))
    assert (found.error, found.is_over) == (OUR_FAULT, True)


def test_a_model_elsewhere_answers_and_explains_nothing(open_tab, backend, tmp_path):
    assert open_tab().explains
    remote = elsewhere(backend)
    pictures = ShownPictures(tmp_path / "shown")
    tab = Tab(Library(lambda: remote), pictures, lambda: remote, "anna")
    assert not tab.explains
    assert last(tab.ask(Draft("What?"))).messages[-1].text == "A red circle."
    assert "cannot be looked into" in last(tab.explain(RED, "attention")).error


def test_crops_are_drawn_each_with_its_own_heat_and_pictures_share_it():
    pictures = tuple(
        Picture.open(Image.new("RGB", (800, 400), colour)) for colour in ("red", "tan")
    )
    cells = np.ones((4, 4), dtype=np.float32)
    heat = Heat(
        method="attention",
        says="",
        words="",
        unit="",
        pictures=pictures,
        maps=(
            HeatMap(0, None, cells),
            HeatMap(0, (0, 0, 400, 400), cells),
            HeatMap(0, (400, 0, 800, 400), cells),
            HeatMap(1, None, cells),
        ),
    )
    first, second = drawings_of(heat)
    assert (len(first.crops), len(second.crops)) == (2, 0)
    assert (first.share, second.share) == (0.75, 0.25)
    assert first.image.size == (448, 224)
    assert first.crops[0].size == (224, 224)
