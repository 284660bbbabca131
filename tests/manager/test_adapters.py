"""Adapters that a model was given come back with it."""

import pytest

from gemma3vl_app.errors import LoadError


def test_an_adapter_is_there_again_when_its_model_had_to_make_room(manager):
    manager.load("a", weights="nf4")
    manager.add_adapter("cats", "runs/cats")
    source, options = manager.current_source
    manager.swap("b")
    assert manager.current.adapters == ()
    assert manager.swap(source, **options).adapters == ("cats",)


def test_an_adapter_is_there_again_after_a_swap_that_failed(manager, loads):
    manager.load("a")
    manager.add_adapter("cats", "runs/cats")
    loads.failing = {"b"}
    with pytest.raises(LoadError, match="a was loaded again"):
        manager.swap("b")
    assert manager.current.adapters == ("cats",)


def test_an_adapter_belongs_to_the_model_as_it_was_loaded(manager):
    manager.load("a", weights="nf4")
    manager.add_adapter("cats", "runs/cats")
    assert manager.swap("a", weights="bf16").adapters == ()


def test_a_model_whose_adapter_is_gone_comes_back_without_it(manager, monkeypatch, caplog):
    from gemma3vl_app.testing import ScriptedBackend

    manager.load("a")
    manager.add_adapter("cats", "runs/cats")
    manager.swap("b")

    def missing(self, name, path):
        raise LoadError("There is no folder runs/cats.")

    monkeypatch.setattr(ScriptedBackend, "add_adapter", missing)
    assert manager.swap("a").adapters == ()
    assert "a comes back without its adapter cats: There is no folder" in caplog.text


def test_an_adapter_needs_a_model(manager):
    with pytest.raises(LoadError, match="No model is loaded"):
        manager.add_adapter("cats", "runs/cats")
