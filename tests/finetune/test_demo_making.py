"""The way from nothing to a tower that reads: stages, growth, and going on in the middle."""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from gemma3vl_app.finetune import demo, demo_files
from gemma3vl_app.finetune.demo import Begun
from gemma3vl_app.finetune.demo_language import Leg, Reader
from gemma3vl_app.finetune.demo_talks import PoolStage, Speech
from gemma3vl_app.finetune.demo_tower import TowerWithHeads
from gemma3vl_app.finetune.tower_drawing import draw_stage
from gemma3vl_app.finetune.tower_pictures import Stage
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.testing import tiny_checkpoint
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
    tower = make(config, tmp_path, tmp_path / "out", Begun())
    assert len(tower.tower.encoder.layers) == 3
    states = [torch.load(tmp_path / f"{s.name}.pt")["model"] for s in (*SCENES, *READING)]
    layers = [{key.split(".")[3] for key in state if "encoder.layers" in key} for state in states]
    assert [len(each) for each in layers] == [2, 2, 3]
    assert all(value.isfinite().all() for value in tower.state_dict().values())


def test_training_goes_on_from_an_unfinished_tower_and_passes_over_what_was_done(
    config, small_stages, tmp_path, needs_fonts
):
    torch.manual_seed(0)
    begun = make(config, tmp_path / "first", tmp_path, Begun())
    demo_files.write_unfinished(begun, tmp_path, "reading", 1)
    tower = make(config, tmp_path / "second", tmp_path, demo.begun_with(tmp_path))
    assert [file.name for file in (tmp_path / "second").iterdir()] == ["reading.pt"]
    changed = tower.tower.post_layernorm.weight - begun.tower.post_layernorm.weight
    assert 0 < changed.abs().max() < 0.1


READING_ON = replace(READING[0], name="reading on", steps=4, heads_alone=2)


def test_a_finished_tower_goes_through_the_stages_that_it_has_not_been_through(
    config, small_stages, tmp_path, needs_fonts, monkeypatch
):
    torch.manual_seed(0)
    reader = Reader(Gemma3ForConditionalGeneration(config), config.mm_tokens_per_image)
    torch.nn.init.normal_(reader.projector.mm_input_projection_weight)
    finished, work, out = TowerWithHeads(config), tmp_path / "work", tmp_path / "out"
    done = {"stage": "language", "step": 1, "tower": "reading"}
    demo_files.write_demo(reader, finished, out, done)
    begun = demo.begun_with(out)
    tower = make(config, work, out, begun)
    assert not work.exists()

    monkeypatch.setattr(demo, "READING_STAGES", (*READING, READING_ON))
    monkeypatch.setattr(demo, "_REFITTED", 40)
    later = make(config, work, out, begun)
    assert [file.name for file in work.iterdir()] == ["reading on.pt"]
    pixels = draw_stage(READING_ON, 8, seed=0, patch=later.patch, pooled=later.pooled).pixels
    seen = [each.look_at_all(pixels) for each in (tower, later)]
    assert (seen[1] - seen[0]).abs().max() > 0.01
    refitted, kept = (each.projector.mm_input_projection_weight for each in (later, tower))
    change = (seen[1] @ refitted - seen[0] @ kept).square().mean()
    assert change < 0.5 * (seen[1] @ kept - seen[0] @ kept).square().mean()


TALKS = (
    demo.LanguageStage(PoolStage(4, 6, seed=1), Leg("first", 3, 2, tested=2)),
    demo.LanguageStage(PoolStage(4, 6, seed=2), Leg("second", 2, 2, tested=2)),
)


class Teaching:
    """Training of a tiny language model, through the stages of `TALKS`."""

    def __init__(self, folder, work):
        read = {
            name: json.loads((folder / f"{name}.json").read_text())
            for name in ("config", "preprocessor_config")
        }
        self.tokenizer = TextTokenizer.from_file(folder / "tokenizer.json")
        format = PromptFormat.from_config(
            read["config"], read["preprocessor_config"], self.tokenizer
        )
        model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        torch.manual_seed(0)
        self.reader = Reader(model, format.image_tokens)
        self.tower = TowerWithHeads(Gemma3Config(**read["config"]))
        self.speech = Speech(folder / "tokenizer.json", format)
        self.work = work

    def go_on(self, begun, minutes=60.0):
        options = argparse.Namespace(work=self.work, out=self.work / "out", minutes=minutes)
        with ThreadPoolExecutor(1) as executor:
            stage, step = demo.train_language(
                self.reader, self.tower, self.tokenizer, self.speech, begun, options, executor
            )
        return stage.leg.name, step

    def learned(self):
        return {name: p.detach().clone() for name, p in self.reader.trained().items()}

    def write(self, name, step, of_steps, tower="reading"):
        done = {"stage": name, "step": step, "of_steps": of_steps, "tower": tower}
        demo_files.write_demo(self.reader, self.tower, self.work / "out", done)
        return demo.begun_with(self.work / "out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("demo") / "tiny", window=512)


@pytest.fixture
def small_talks(monkeypatch):
    # The fit of so few pictures differs in its last digits from one time to the next.
    monkeypatch.setattr(Reader, "start_projector", lambda self, pool, tokenizer: None)
    monkeypatch.setattr(demo, "LANGUAGE_STAGES", TALKS)
    monkeypatch.setattr(demo, "TEST_POOL", PoolStage(2, 2, seed=3))


def test_the_language_model_goes_through_all_stages_also_when_ended_after_each_step(
    folder, small_talks, tmp_path
):
    teaching = Teaching(folder, tmp_path / "whole")
    assert teaching.go_on(Begun()) == ("second", 2)
    reached = []
    for _ in range(5):  # each as a process of its own
        ended = Teaching(folder, tmp_path / "parts")
        reached.append(ended.go_on(Begun(), minutes=0))
    assert reached == [("first", 1), ("first", 2), ("second", 1), ("second", 2), ("second", 2)]
    whole = teaching.learned()
    for name, value in ended.learned().items():
        torch.testing.assert_close(value, whole[name], atol=1e-6, rtol=1e-5)


def test_the_language_model_goes_on_from_shipped_files_with_what_comes_after_their_stage(
    folder, small_talks, tmp_path
):
    begun = Teaching(folder, tmp_path / "first")
    assert begun.go_on(Begun()) == ("second", 2)
    state = begun.write("first", 3, 3)
    shipped = begun.learned()

    later = Teaching(folder, tmp_path / "second")
    (tmp_path / "second").mkdir()
    (tmp_path / "first" / "out").rename(tmp_path / "second" / "out")
    assert later.go_on(state) == ("second", 2)
    assert not (tmp_path / "second" / "first.pt").exists()
    name = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_B.default.weight"
    changed = later.learned()[name] - shipped[name]
    assert 0 < changed.abs().max() < 0.1


def test_nothing_is_drawn_or_trained_where_the_shipped_files_are_of_the_last_stage(
    folder, small_talks, tmp_path
):
    teaching = Teaching(folder, tmp_path)
    state = teaching.write("second", 2, 2)
    shipped = teaching.learned()
    assert teaching.go_on(state) == ("second", 2)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    for name, value in teaching.learned().items():
        torch.testing.assert_close(value, shipped[name], atol=1e-2, rtol=1e-2)  # written in bf16
