"""The way from nothing to a tower that reads: stages, growth, and going on in the middle."""

import argparse
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gemma3vl_app.finetune import demo, demo_files
from gemma3vl_app.finetune.tower_pictures import Stage
from tests.finetune.conftest import tower_config

SCENES = (
    Stage("black", 32, True, 40, 4, 2, 1e-3, seed=1, heads=("shape",), black=True),
    Stage("scenes", 64, False, 16, 4, 2, 1e-3, seed=2, places=True),
)
READING = (Stage("reading", 64, False, 16, 4, 2, 1e-3, 3, kinds=(("scene", 0.5), ("print", 0.5))),)


@pytest.fixture
def config():
    return tower_config(layers=3)


@pytest.fixture
def small_stages(monkeypatch):
    monkeypatch.setattr(demo, "STAGES", SCENES)
    monkeypatch.setattr(demo, "READING_STAGES", READING)
    monkeypatch.setattr(demo, "FIRST_LAYERS", 2)
    monkeypatch.setattr("gemma3vl_app.finetune.tower_training._TEST_PICTURES", 8)


def make(config, work, out, begun):
    options = argparse.Namespace(work=work, out=out)
    with ThreadPoolExecutor(1) as executor:
        return demo.train_tower(config, "cpu", begun, options, executor)


def test_the_tower_goes_through_all_stages_and_grows_before_it_reads(
    config, small_stages, tmp_path, needs_fonts
):
    torch.manual_seed(0)
    tower = make(config, tmp_path, tmp_path / "out", {"stage": "", "step": 0})
    assert len(tower.tower.encoder.layers) == 3
    states = [torch.load(tmp_path / f"{s.name}.pt")["model"] for s in (*SCENES, *READING)]
    layers = [{key.split(".")[3] for key in state if "encoder.layers" in key} for state in states]
    assert [len(each) for each in layers] == [2, 2, 3]
    assert all(value.isfinite().all() for value in tower.state_dict().values())


def test_training_goes_on_from_an_unfinished_tower_and_passes_over_what_was_done(
    config, small_stages, tmp_path, needs_fonts
):
    torch.manual_seed(0)
    begun = make(config, tmp_path / "first", tmp_path, {"stage": "", "step": 0})
    demo_files.write_unfinished(begun, tmp_path, "reading", 1)
    state = demo_files.read_state(tmp_path)
    tower = make(config, tmp_path / "second", tmp_path, state)
    assert [file.name for file in (tmp_path / "second").iterdir()] == ["reading.pt"]
    changed = tower.tower.post_layernorm.weight - begun.tower.post_layernorm.weight
    assert 0 < changed.abs().max() < 0.1
