"""Two processes learn what one does: DDP as it is launched, and FSDP2's shards, on gloo.

GPUs are not measured here: what is shown is that our model, losses, checkpoints and results fit
the sharding.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gemma3vl_app.finetune.train import finetune
from gemma3vl_app.loading import load_model
from gemma3vl_app.loading.adapter_files import read_adapter
from tests.finetune.conftest import but
from tests.finetune.test_train import evaluations, losses, only_projector

ROOT = Path(__file__).parents[2]
SHARDED = {"sft": {"train_projector": True, "train_vision_tower": True}, "lora": {}}
FILES = {"sft": "model/model.safetensors", "lora": "adapter/adapter_model.safetensors"}


@pytest.fixture(scope="module")
def data(pictures, tmp_path_factory):
    """Five items, one of them without a picture: one process' share has none in some step.

    One of the five is evaluated on: the other process has to make do with the same one.
    """
    lines = [json.loads(line) for line in (pictures / "data.jsonl").read_text().splitlines()[:4]]
    for line in lines:
        line["picture"] = str(pictures / line["picture"])
    lines.insert(1, {"question": "Say yes.", "answer": "Yes."})
    file = tmp_path_factory.mktemp("data") / "five.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def run_two(recipes):
    """Run the worker in two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = json.dumps([asdict(recipe) for recipe in recipes])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.finetune.sharded_worker", given],
            cwd=ROOT,
            env={
                **os.environ,
                **shared,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [worker.communicate(timeout=240)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, text in zip(workers, said, strict=True):
        assert worker.returncode == 0, text[-3000:]


@pytest.mark.slow
def test_two_processes_learn_what_one_does_whether_weights_are_shared_out_or_not(
    recipe, data, small, tmp_path
):
    torch.set_num_threads(1)
    recipe = but(recipe, data=str(data), max_steps=2, save_every=1, eval_every=1, eval_fraction=0.2)
    alone = {"projector": only_projector(recipe, out=str(tmp_path / "projector"))}
    together = {"projector": but(alone["projector"], micro_batch=1, out=str(tmp_path / "ddp"))}
    for method, switches in SHARDED.items():
        alone[method] = but(recipe, method=method, out=str(tmp_path / method), **switches)
        shares = {"sharding": "fsdp", "gpus": 2, "micro_batch": 2, "gradient_checkpointing": True}
        together[method] = but(alone[method], out=str(tmp_path / f"{method}-fsdp"), **shares)
    run_two(together.values())
    for name, one in alone.items():
        finetune(one)
        run = Path(together[name].out)
        assert len(losses(one.out)) == len(evaluations(one.out)) == 2
        assert losses(run) == pytest.approx(losses(one.out), rel=1e-3), name
        assert evaluations(run) == pytest.approx(evaluations(one.out), rel=1e-3), name
        file = FILES.get(name, FILES["sft"])
        same_tensors(load_file(run / file), load_file(Path(one.out) / file))
    for name in SHARDED:  # the worker killed them behind the first step, and went on
        run = Path(together[name].out)
        assert json.loads((run / "history-1.json").read_text())[0]["step"] == 1
        first = run / FILES[name].replace("/", "-1/")
        same_tensors(load_file(run / FILES[name]), load_file(first))
    load_model(tmp_path / "sft-fsdp/model", weights="fp32")
    adapter = read_adapter("shared", tmp_path / "lora-fsdp/adapter")
    assert len(adapter.layers) == 2 * 7


def same_tensors(found, expected):
    assert found.keys() == expected.keys()
    # AdamW's first steps go by the gradients' signs: where one is about 0 they differ.
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= 0.02 * tensor.norm() + 1e-6, name
