"""The models as the page shows them, and who may change them."""

from dataclasses import replace

import pytest

from gemma3vl_app.errors import ConversationError, LoadError
from gemma3vl_app.generation import Progress
from gemma3vl_app.hardware import KNOWN_GPUS, Machine
from gemma3vl_app.manager import ModelManager
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES
from gemma3vl_app.webui.models import Models
from gemma3vl_app.webui.words import ENGLISH


def load(source, *, progress, **options):
    if source == "12b-it":
        raise LoadError("The licence of 12b-it is not accepted.")
    progress(Progress("reading", 1, 2, "bytes", "Reading"))
    about = replace(DEFAULT_CAPABILITIES, model=str(source))
    return ScriptedBackend(capabilities=about)


@pytest.fixture
def manager():
    with ModelManager(load) as manager:
        manager.load("demo")
        yield manager


def models(manager, gpu="l4", **options):
    machine = Machine(
        cpu_count=8, memory_bytes=64 << 30, available_bytes=60 << 30, gpus=(KNOWN_GPUS[gpu],)
    )
    return Models(manager, machine=lambda: machine, **options)


def shown(models, owner="anna", **options):
    values = models.as_values(owner, ENGLISH, **options)
    return {each["name"]: each for each in values["models"]}


def test_each_model_says_whether_it_fits_and_why(manager):
    found = shown(models(manager))
    assert found["4b-it"]["fits"]
    assert found["4b-it"]["reasons"]
    (bar, *_) = found["4b-it"]["bars"]
    assert bar["total"] == sum(part["bytes"] for part in bar["parts"])
    assert 0 < bar["total"] <= bar["limit"]
    assert found["demo"]["current"]


def test_another_precision_is_another_plan(manager):
    found = models(manager)
    sizes = {
        weights: shown(found, wishes={"4b-it": weights})["4b-it"]["bars"][0]["parts"][0]["bytes"]
        for weights in ("bf16", "nf4")
    }
    assert sizes["nf4"] < sizes["bf16"] / 2


def test_a_precision_that_makes_no_sense_is_told(manager):
    found = shown(models(manager), wishes={"4b-it": "float7"})["4b-it"]
    assert not found["fits"]
    assert "float7" in found["reasons"][0]


def test_a_model_is_swapped_with_its_progress(manager):
    lines = list(models(manager).act("anna", "use", "4b-it", "nf4"))
    assert any("Reading" in line and "50 %" in line for line in lines)
    assert manager.current.capabilities.model == "4b-it"
    assert shown(models(manager))["4b-it"]["current"]


def test_a_model_that_cannot_be_loaded_is_told_and_the_old_one_goes_on(manager):
    with pytest.raises(LoadError, match="licence"):
        list(models(manager).act("anna", "use", "12b-it", "auto"))
    assert manager.current.capabilities.model == "demo"


def test_the_model_that_answers_is_not_unloaded(manager):
    with pytest.raises(ConversationError, match="use another one first"):
        list(models(manager).act("anna", "unload", "demo", "auto"))
    manager.load("4b-it")
    (line,) = models(manager).act("anna", "unload", "4b-it", "auto")
    assert "freed" in line
    assert [each.name for each in manager.resident] == ["demo"]


def test_who_may_not_change_models_sees_them_only(manager):
    guarded = models(manager, may_change=lambda owner: owner == "user anna", any_source=False)
    assert not guarded.as_values("user ben", ENGLISH)["may_change"]
    assert guarded.as_values("user anna", ENGLISH)["may_change"]
    with pytest.raises(ConversationError, match="operator"):
        list(guarded.act("user ben", "use", "4b-it", "auto"))
    with pytest.raises(ConversationError, match="does not offer"):
        list(guarded.act("user anna", "use", "/etc", "auto"))
    assert manager.current.capabilities.model == "demo"


@pytest.mark.parametrize(
    ("text", "name"), [("runs/cats", "cats"), ("mine=runs/cats", "mine"), (" a = b ", "a")]
)
def test_the_model_that_answers_gets_an_adapter(manager, text, name):
    assert name in models(manager).add_adapter("anna", text)
    assert manager.current.adapters == (name,)
    assert shown(models(manager))["demo"]["adapters"] == [name]


@pytest.mark.parametrize("text", ["", "mine=", "=folder", "/"])
def test_an_adapter_without_a_folder_or_name_is_told(manager, text):
    with pytest.raises(ConversationError, match="NAME=FOLDER"):
        models(manager).add_adapter("anna", text)


def test_only_who_sits_here_adds_adapters(manager):
    for guarded in (models(manager, any_source=False), models(manager, may_change=lambda _: False)):
        with pytest.raises(ConversationError, match="on the machine of this server"):
            guarded.add_adapter("anna", "runs/cats")
    assert manager.current.adapters == ()
