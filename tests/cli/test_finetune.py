"""`gemma3vl finetune` and `gemma3vl convert merge` as people and launchers run them."""

import os
import subprocess
import sys

import pytest
from PIL import Image

import gemma3vl_app.conversion.converting
import gemma3vl_app.finetune.train
from gemma3vl_app.errors import TrainingError
from gemma3vl_app.finetune.recipe import shipped_recipes
from gemma3vl_app.generation import Progress

PROGRAM = [sys.executable, "-m", "gemma3vl_app.cli"]


def really(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def trained(monkeypatch):
    """Stand in for the training: note its recipes, and report a step."""
    seen = []

    def train(recipe, *, model=None, progress=None):
        seen.append(recipe)
        if recipe.epochs == 13:
            raise TrainingError("Thirteen epochs are unlucky.")
        if progress is not None:
            progress(Progress("load", 1, 2, "bytes", "Loading"))
            progress(Progress("train", 3, 9, "steps", "loss 0.5000 \x1b[2J"))
        return gemma3vl_app.finetune.train.Path("runs/finetune/adapter")

    monkeypatch.setattr(gemma3vl_app.finetune.train, "finetune", train)
    return seen


def test_the_list_shows_every_recipe_and_fits_a_terminal(run):
    code, out, err = run("finetune", "--list")
    assert (code, err) == (0, "")
    assert {line.split()[0] for line in out.splitlines()} >= set(shipped_recipes())
    assert max(map(len, out.splitlines())) <= 80


def test_a_dry_run_in_a_process_says_what_it_takes_on_stdout():
    done = really("finetune", "4b-lora", "gpus=2", "micro_batch=2", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    words = ("29,802,496 of 4,329,881,968", "131,072 tokens", "8 times", "not measured")
    for said in (*words, "of the first machine's memory", "GiB of disk"):
        assert said in done.stdout
    for row in ("weights", "gradients", "optimizer", "activations", "logits", "total"):
        assert f"\n{row} " in done.stdout
    assert "\x1b" not in done.stdout


def test_a_recipe_that_does_not_fit_is_told_by_the_exit_code(run):
    code, out, _ = run("finetune", "27b-sft", "gpus=1", "sharding=none", "--dry-run")
    assert code == 1
    assert "does not fit" in out
    assert "The fewest that hold it: 8 (shared out by FSDP2)." in out


def test_a_launched_process_that_is_not_the_first_is_silent():
    done = really("finetune", "4b-lora", "--dry-run", RANK="1", WORLD_SIZE="2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_every_process_trains_and_the_first_one_speaks(run, trained, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    code, out, err = run("finetune", "demo-lora", "data=photos", "epochs=2")
    assert (code, len(trained)) == (0, 1)
    assert (trained[0].data, trained[0].epochs) == ("photos", 2)
    if rank == "0":
        assert out == "runs/finetune/adapter\n"
        assert err == "loss 0.5000 \ufffd[2J: 3 of 9 steps\n"
    else:
        assert out + err == ""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_training_that_fails_is_told_once(run, trained, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    code, out, err = run("finetune", "demo-lora", "data=photos", "epochs=13")
    assert (code, out) == (1, "")
    assert err == ("Thirteen epochs are unlucky.\n" if rank == "0" else "")


def test_the_first_process_of_another_machine_says_why_it_failed(run, trained, monkeypatch):
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    code, out, err = run("finetune", "demo-lora", "data=photos", "epochs=13")
    assert (code, out, err) == (1, "", "Process 8: Thirteen epochs are unlucky.\n")


def test_a_finished_training_is_told(run, monkeypatch):
    def train(recipe, *, model=None, progress=None):
        progress(Progress("finished", 0, 0, "", "'run' holds the result of this recipe"))
        return gemma3vl_app.finetune.train.Path("run/adapter")

    monkeypatch.setattr(gemma3vl_app.finetune.train, "finetune", train)
    code, out, err = run("finetune", "demo-lora", "data=photos")
    assert (code, out, err) == (0, "run/adapter\n", "'run' holds the result of this recipe\n")


def test_a_recipe_for_many_gpus_is_refused_as_one_process_at_once(run, monkeypatch):
    monkeypatch.setattr(gemma3vl_app.finetune.train, "load_model", None)
    code, out, err = run("finetune", "4b-sft", "data=photos")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "torchrun --standalone --nproc-per-node 8 -m gemma3vl_app.cli finetune" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--list"),
        (["4b-lorra"], "Did you mean '4b-lora'?"),
        (["4b-lora", "epoch=2"], "Did you mean 'epochs'?"),
        (["4b-lora", "gpus=3"], "global_batch"),
        (["4b-lora"], "data="),
    ],
)
def test_a_wrong_wish_is_one_line_and_trains_nothing(run, trained, arguments, said):
    code, out, err = run("finetune", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not trained


def test_merge_folds_an_adapter_and_says_where(run, monkeypatch):
    seen = []

    def convert(source, target, to, *, adapter, progress, **options):
        progress(Progress("convert", 1, 2, "bytes", "Merging"))
        seen.append((source, str(adapter), str(target), to, options))
        return target

    monkeypatch.setattr(gemma3vl_app.conversion.converting, "convert", convert)
    command = ("convert", "merge", "a/adapter", "--base", "4b-it", "--out", "mine")
    assert run(*command) == (0, "mine\n", "")
    assert seen == [("4b-it", "a/adapter", "mine", "merged", {"revision": None})]


def test_merging_what_is_no_adapter_is_one_line(run, tmp_path):
    code, out, err = run(
        "convert", "merge", str(tmp_path), "--base", "demo", "--out", str(tmp_path / "out")
    )
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_folder_of_pictures_becomes_an_adapter_and_a_merged_model(run, tiny, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 32), colour).save(photos / f"{colour}.png")
        (photos / f"{colour}.txt").write_text(f"It is {colour}.")
    folder = tmp_path / "run"
    fields = [f"model={tiny}", f"data={photos}", f"out={folder}", "question=Which colour?"]
    fields += ["max_steps=2", "global_batch=2", "micro_batch=2", "eval_fraction=0"]
    code, out, err = run("finetune", "demo-lora", *fields)
    assert (code, out) == (0, f"{folder / 'adapter'}\n"), err
    assert err.count("loss") == 2
    merged = tmp_path / "merged"
    command = ("convert", "merge", out.strip(), "--base", str(tiny), "--out", str(merged))
    assert run(*command)[:2] == (0, f"{merged}\n")
    assert (merged / "model.safetensors").is_file()
