"""The same question under two settings."""

import time
from dataclasses import replace

import pytest
from PIL import Image

from gemma3vl_app.errors import ConversationError, LoadError, PictureError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.hardware import Machine
from gemma3vl_app.manager import ModelManager
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES
from gemma3vl_app.webui.compare import Side, compare
from gemma3vl_app.webui.compare_tab import side_of
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.models import Models
from gemma3vl_app.webui.view import Settings


def load(source, *, progress=None, **options):
    if source == "broken":
        raise LoadError("There is no model of that name.")
    about = replace(DEFAULT_CAPABILITIES, model=str(source), weights=options.get("weights", ""))
    return ScriptedBackend([f"I am {source}."], capabilities=about)


@pytest.fixture
def manager():
    with ModelManager(load) as manager:
        manager.load("demo")
        yield manager


@pytest.fixture
def desk(manager, tmp_path):
    return Desk.set_up(lambda: manager.current, tmp_path, models=Models(manager))


@pytest.fixture
def red(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def last(pairs):
    return list(pairs)[-1]


def test_both_sides_get_the_question_and_the_pictures_with_their_own_settings(desk, red):
    sides = (
        Side(settings=Settings(temperature=0)),
        Side(settings=Settings(temperature=0.7, crops="off")),
    )
    left, right = last(compare(desk, "anna", "What is it?", [red], sides))
    assert left.text == right.text == "I am demo."
    assert "tokens/s" in left.line and "demo" in left.line
    first, second = desk.backend().requests
    assert first.sampling == Greedy()
    assert isinstance(second.sampling, Sample) and second.sampling.temperature == 0.7
    assert [r.conversation.pictures[0].crops for r in (first, second)] == ["auto", "off"]
    assert first.session != second.session  # neither is quicker for what the other has computed


def test_two_models_answer_one_after_the_other_and_the_first_one_is_back_afterwards(desk, manager):
    pair = last(compare(desk, "anna", "Who?", [], (Side("4b-it"), Side("12b-it"))))
    assert [column.text for column in pair] == ["I am 4b-it.", "I am 12b-it."]
    assert manager.current.capabilities.model == "demo"


def test_a_side_that_fails_says_why_and_the_other_one_answers(desk, manager):
    left, right = last(compare(desk, "anna", "Who?", [], (Side("broken"), Side("4b-it"))))
    assert "no model of that name" in left.line and left.text == ""
    assert right.text == "I am 4b-it."
    assert manager.current.capabilities.model == "demo"


def test_leaving_midway_brings_the_first_model_back(desk, manager):
    running = compare(desk, "anna", "Who?", [], (Side("4b-it"), Side("12b-it")))
    while next(running)[0].text == "":
        pass
    running.close()  # returns at once: gradio calls it where nothing may wait
    until = time.monotonic() + 5
    while [each.name for each in manager.resident] != ["demo"]:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert manager.current.capabilities.model == "demo"


def test_the_model_that_answers_now_is_compared_with_another_on_either_side(desk):
    for sides in ((Side(), Side("4b-it")), (Side("4b-it"), Side())):
        pair = last(compare(desk, "anna", "Who?", [], sides))
        names = [f"I am {side.model or 'demo'}." for side in sides]
        assert [column.text for column in pair] == names


def test_meanwhile_others_are_answered_by_the_model_they_had(desk, manager):
    for _ in compare(desk, "anna", "Who?", [], (Side("4b-it"), Side("12b-it"))):
        assert desk.backend().capabilities.model == "demo"
    assert [each.name for each in manager.resident] == ["demo"]


def test_where_there_is_no_room_beside_it_the_model_comes_back_as_it_was_loaded(tmp_path):
    loaded = []

    def load_alone(source, *, progress=None, **options):
        if any(not each._closed for each in loaded):
            raise LoadError("There is no room for it.")
        loaded.append(load(source, **options))
        return loaded[-1]

    small = Machine(cpu_count=2, memory_bytes=4 << 30, available_bytes=256 << 20)
    with ModelManager(load_alone, machine=lambda: small) as manager:
        manager.load("demo", weights="nf4")
        Models(manager).add_adapter("anna", "cats=runs/cats")
        desk = Desk.set_up(lambda: manager.current, tmp_path, models=Models(manager))
        pair = last(compare(desk, "anna", "Who?", [], (Side(), Side("4b-it"))))
        assert [column.text for column in pair] == ["I am demo.", "I am 4b-it."]
        pair = last(compare(desk, "anna", "Who?", [], (Side("4b-it"), Side("12b-it"))))
        assert [column.text for column in pair] == ["I am 4b-it.", "I am 12b-it."]
        assert manager.current.capabilities.weights == "nf4"
        assert manager.current.adapters == ("cats",)
        assert [each.name for each in manager.resident] == ["demo"]


def test_answers_stay_where_the_former_model_cannot_be_brought_back(desk, manager, monkeypatch):
    monkeypatch.setattr(Models, "put_back", lambda self, before: "It is gone.")
    left, right = last(compare(desk, "anna", "Who?", [], (Side(), Side("4b-it"))))
    assert (left.text, right.text) == ("I am demo.", "I am 4b-it.")
    assert "It is gone." in right.line


def test_one_comparison_loads_models_at_a_time(desk):
    running = compare(desk, "anna", "Who?", [], (Side(), Side("4b-it")))
    next(running)
    with pytest.raises(ConversationError, match="Somebody is comparing"):
        next(compare(desk, "ben", "Who?", [], (Side(), Side("4b-it"))))
    assert last(compare(desk, "ben", "Who?", [], (Side(), Side())))[0].text == "I am demo."
    list(running)


def test_a_comparison_takes_as_many_pictures_as_a_message_and_no_file_of_the_server(desk, red):
    with pytest.raises(PictureError, match="20"):
        list(compare(desk, "anna", "?", [red] * 21, (Side(), Side())))
    with pytest.raises(ConversationError, match="sent to this server"):
        list(compare(desk, "anna", "?", ["/etc/hostname"], (Side(), Side())))


def test_who_may_not_change_models_compares_settings_only(manager, tmp_path):
    guarded = Models(manager, may_change=lambda owner: False)
    desk = Desk.set_up(lambda: manager.current, tmp_path, models=guarded)
    left, right = last(compare(desk, "ben", "Who?", [], (Side("4b-it"), Side())))
    assert "operator" in left.line
    assert right.text == "I am demo."


def test_what_cannot_be_asked_is_told_before_anything_is_loaded(desk, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ConversationError, match="question first"):
        list(compare(desk, "anna", " ", [], (Side(), Side())))
    with pytest.raises(PictureError, match=r"bad\.png"):
        list(compare(desk, "anna", "?", [str(tmp_path / "bad.png")], (Side(), Side())))


def test_fields_say_what_a_side_is():
    assert side_of(("", None, "", "auto", "")) == Side()
    side = side_of((" 4b-it ", "nf4", "0.5", "off", " mine "))
    assert side == Side("4b-it", "nf4", Settings(temperature=0.5, crops="off", adapter="mine"))
    with pytest.raises(ConversationError, match="temperature"):
        side_of(("", "auto", "warm", "auto", ""))
