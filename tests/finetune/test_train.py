"""Whole trainings of the tiny checkpoint, on eight pictures."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gemma3vl_app as gv
from gemma3vl_app.errors import RecipeError, TrainingError
from gemma3vl_app.finetune.recipe import Recipe
from gemma3vl_app.finetune.train import finetune
from tests.finetune.conftest import COLOURS, but, recipe_for

ROOT = Path(__file__).parents[2]


def losses(run):
    """The loss of every step, by its number."""
    history = json.loads((Path(run) / "history.json").read_text())
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def evaluations(run):
    history = json.loads((Path(run) / "history.json").read_text())
    return {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}


def only_projector(recipe, **changes):
    """A training of seconds: the projector learns, and checkpoints are small."""
    switches = {"train_language_model": False, "train_projector": True}
    return but(recipe, method="sft", **switches, **changes)


@pytest.mark.slow
def test_eight_pictures_are_learned_by_heart_and_answered_after_loading(recipe, pictures):
    folder = finetune(
        but(
            recipe,
            method="sft",
            train_vision_tower=True,
            train_projector=True,
            global_batch=8,
            micro_batch=8,
            max_steps=30,
            schedule="cosine",
        )
    )
    assert folder == Path(recipe.out) / "model"
    learned = losses(recipe.out)
    assert len(learned) == 30
    assert learned[30] < 0.05 < 1 < learned[1]
    with gv.load(folder, weights="fp32") as backend:
        for colour in COLOURS:
            picture = gv.Picture.open(pictures / f"{colour}.png")
            asked = gv.Conversation().user(picture, "What colour?")
            answer = backend.stream(asked, sampling=gv.Greedy(), max_new_tokens=12).answer
            assert (answer.text, answer.finish_reason) == (f"It is {colour}.", "stop")


KILLED = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from gemma3vl_app.finetune.recipe import Recipe
from gemma3vl_app.finetune.train import finetune

def stop(step):
    if step.stage == "train" and step.done == 6:
        os.kill(os.getpid(), signal.SIGKILL)

finetune(Recipe(**json.loads(sys.argv[1])), progress=stop)
"""


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_with_the_very_same_losses(recipe, tmp_path):
    torch.set_num_threads(1)
    # Dropout, accumulation and evaluations: all that could shift the random numbers.
    recipe = but(
        recipe,
        lora_dropout=0.3,
        micro_batch=2,
        max_steps=8,
        save_every=4,
        eval_every=3,
        eval_fraction=0.25,
        gradient_checkpointing=True,
        schedule="cosine",
        warmup_ratio=0.2,
    )
    killed = but(recipe, out=str(tmp_path / "killed"))
    run = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(asdict(killed))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr[-2000:]
    checkpoints = tmp_path / "killed" / "checkpoints"
    assert [each.name for each in checkpoints.iterdir()] == ["checkpoint-4"]
    # As if it had been killed while writing the next one: all files but the last.
    cut = checkpoints / "checkpoint-5"
    cut.mkdir()
    for file in (checkpoints / "checkpoint-4").iterdir():
        if file.name != "trainer_state.json":
            (cut / file.name).write_bytes(file.read_bytes())
    seen = []
    finetune(killed, progress=lambda step: seen.append(step.done) if step.stage == "train" else 0)
    finetune(recipe)
    assert min(seen) == 5
    assert not cut.exists()
    assert len(losses(recipe.out)) == 8
    assert losses(killed.out) == losses(recipe.out)
    assert evaluations(killed.out) == evaluations(recipe.out)
    a, b = (Path(each.out) / "adapter/adapter_model.safetensors" for each in (killed, recipe))
    assert a.read_bytes() == b.read_bytes()


def interrupt_at(number):
    def progress(step):
        if step.stage == "train" and step.done == number:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def finished(small, pictures, tmp_path_factory):
    """The recipe of a training of four steps, which is done."""
    run = tmp_path_factory.mktemp("finished") / "run"
    recipe = only_projector(recipe_for(small, pictures, run), save_every=2)
    finetune(recipe)
    return recipe


def test_full_weights_go_on_from_their_checkpoint_too(finished, tmp_path):
    """transformers' own checkpoints of this model are not found again under their names."""
    cut = but(finished, out=str(tmp_path / "cut"))
    with pytest.raises(KeyboardInterrupt):
        finetune(cut, progress=interrupt_at(3))
    finetune(cut)
    assert len(losses(cut.out)) == 4
    assert losses(cut.out) == losses(finished.out)


def test_accumulated_small_batches_are_one_large_batch(finished, tmp_path):
    out = str(tmp_path / "one")
    finetune(but(finished, micro_batch=1, out=out, gradient_checkpointing=True))
    assert losses(out) == pytest.approx(losses(finished.out), abs=1e-4)


def test_a_finished_training_is_not_repeated_and_no_other_takes_its_folder(finished):
    file = Path(finished.out) / "model" / "model.safetensors"
    before = file.stat().st_mtime_ns
    assert finetune(finished) == file.parent
    assert file.stat().st_mtime_ns == before
    with pytest.raises(TrainingError, match="differs in learning_rate, and cannot go on"):
        finetune(but(finished, learning_rate=0.5))


def test_training_stops_when_evaluations_get_no_better_and_keeps_the_best(recipe):
    recipe = only_projector(
        recipe, max_steps=12, eval_every=1, patience=2, eval_fraction=0.25, learning_rate=0.3
    )
    finetune(recipe)
    found = evaluations(recipe.out)
    best = min(found, key=found.get)
    assert max(found) == best + 2 < 12
    run = Path(recipe.out)
    kept = load_file(run / f"checkpoints/checkpoint-{best}/trained.safetensors")
    result = load_file(run / "model/model.safetensors")
    name = "multi_modal_projector.mm_input_projection_weight"
    assert torch.equal(result[name], kept[f"model.{name}"])


def test_a_training_does_not_go_on_over_other_data(recipe, pictures, tmp_path):
    lines = (pictures / "data.jsonl").read_text().splitlines()
    data = tmp_path / "data.jsonl"
    recipe = only_projector(recipe, max_steps=1, data=str(data))

    def write(count):
        items = [json.loads(line) for line in lines[:count]]
        for item in items:
            item["picture"] = str(pictures / item["picture"])
        data.write_text("\n".join(map(json.dumps, items)))

    write(8)
    with pytest.raises(KeyboardInterrupt):
        finetune(recipe, progress=interrupt_at(1))
    write(7)
    with pytest.raises(TrainingError, match="differs in data_digest"):
        finetune(recipe)


def test_recipes_made_in_python_are_checked_as_those_of_files_are(recipe):
    with pytest.raises(RecipeError, match="global_batch 4 cannot be shared out"):
        finetune(but(recipe, micro_batch=3))


def test_batches_that_do_not_share_out_over_the_processes_are_refused(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match="global_batch=4 does not share out"):
        finetune(but(recipe, micro_batch=1))


def test_a_loss_that_is_no_number_ends_the_training(recipe):
    with pytest.raises(TrainingError, match="not a number any more at step"):
        finetune(only_projector(recipe, learning_rate=1e30, max_grad_norm=1e30))


def test_recipes_are_plain_values_that_a_run_can_keep(recipe):
    assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe
