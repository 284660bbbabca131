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
from safetensors import SafetensorError
from safetensors.torch import load_file

import gemma3vl_app as gv
from gemma3vl_app.errors import PictureError, RecipeError, TrainingError
from gemma3vl_app.finetune import train
from gemma3vl_app.finetune.recipe import Recipe
from gemma3vl_app.finetune.run_folder import RunFolder
from gemma3vl_app.finetune.train import finetune
from gemma3vl_app.finetune.trainer import AnswerTrainer
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
            max_steps=28,
            schedule="cosine",
        )
    )
    assert folder == Path(recipe.out) / "model"
    learned = losses(recipe.out)
    assert len(learned) == 28
    assert learned[28] < 0.05 < 1 < learned[1]
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
from gemma3vl_app.finetune.run_folder import RunFolder
from gemma3vl_app.finetune.train import finetune
from gemma3vl_app.finetune.trainer import AnswerTrainer

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
    told = []
    assert finetune(finished, progress=told.append) == file.parent
    assert file.stat().st_mtime_ns == before
    assert [step.stage for step in told] == ["finished"]
    assert "choose another folder (out=...)" in told[0].message
    with pytest.raises(TrainingError, match="differs in learning_rate, and cannot go on"):
        finetune(but(finished, learning_rate=0.5))


@pytest.mark.parametrize(
    ("method", "precision"), [("qlora", "fp32"), ("lora", "bf16")], ids=lambda each: each
)
def test_adapters_over_small_weights_learn_after_an_evaluation_and_load(
    recipe, small, pictures, method, precision
):
    recipe = but(
        recipe,
        method=method,
        precision=precision,
        max_steps=2,
        eval_every=1,
        save_every=1,
        eval_fraction=0.25,
        gradient_checkpointing=True,
    )
    adapter = finetune(recipe)
    assert len(losses(recipe.out)) == len(evaluations(recipe.out)) == 2
    before, after = (
        load_file(Path(recipe.out) / f"checkpoints/checkpoint-{step}/trained.safetensors")
        for step in (1, 2)
    )
    for name, tensor in after.items():  # the first evaluation is between the two
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, before[name]), name
    found = gv.Conversation().user(gv.Picture.open(pictures / "red.png"), "What colour?")
    weights = "nf4" if method == "qlora" else "bf16"
    with gv.load(small, weights=weights, adapters={"mine": adapter}) as backend:
        plain = backend.score(found, "It is red.")
        adapted = backend.score(found, "It is red.", adapter="mine")
    assert [each.logprob for each in plain] != [each.logprob for each in adapted]


def test_an_evaluation_is_the_mean_over_tokens_and_not_over_batches(recipe, tmp_path):
    """A long answer in one batch, a short one in another: either counts by its tokens."""
    items = [
        {"question": "?", "answer": "It is red, and it is blue, and it is green, and yellow."},
        {"question": "?", "answer": "No."},
    ]
    held = tmp_path / "held.jsonl"
    held.write_text("\n".join(map(json.dumps, items)))
    kept = but(recipe, eval_data=str(held), max_steps=1, eval_every=1, learning_rate=1e-9)
    found = []
    for micro_batch in (1, 2):
        out = str(tmp_path / f"run-{micro_batch}")
        finetune(only_projector(kept, micro_batch=micro_batch, out=out))
        found.append(evaluations(out)[1])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError(28, "No space left on device"), "could not be written: No space left on device"),
        (SafetensorError("I/O error: no space"), "could not be written: I/O error: no space"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed"), "could not be written: "),
        (
            PictureError(
                "Caught PictureError in DataLoader worker process 0.\nOriginal Traceback:\n"
                "  File x\ngemma3vl_app.errors.PictureError: There is no 'a.png'."
            ),
            r"A picture of the data is gone: There is no 'a\.png'\. Bring it back",
        ),
    ],
    ids=["disk", "safetensors", "torch", "picture"],
)
def test_what_ends_a_training_midway_is_told_in_one_line(recipe, monkeypatch, raised, said):
    def fail(*arguments, **kwargs):
        raise raised

    monkeypatch.setattr(AnswerTrainer, "_save", fail)
    with pytest.raises(TrainingError, match=said) as caught:
        finetune(only_projector(recipe, max_steps=1))
    assert "\n" not in str(caught.value)
    assert str(Path(recipe.out).parent) not in str(caught.value)


def test_a_folder_that_is_not_shared_is_noticed(recipe, monkeypatch, tmp_path):
    """The first process wrote something that this one, on another machine, does not see."""
    monkeypatch.setattr(train, "SHARED_FOLDER_SECONDS", 0)
    monkeypatch.setattr(train, "of_first", lambda own: b"what the first one wrote")
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(TrainingError, match=r"Process 8 does not see .* on a shared disk"):
        train._check_shared(RunFolder(recipe))


def test_the_first_process_decides_whether_a_training_is_finished(recipe, monkeypatch):
    monkeypatch.setattr(train, "of_first", lambda own: True)
    told = []
    finetune(recipe, progress=told.append)
    assert [step.stage for step in told] == ["finished"]


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
