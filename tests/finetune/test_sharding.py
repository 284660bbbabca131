"""Two processes learn what one does: DDP as it is launched, and FSDP2's shards, on gloo.

GPUs are not measured here: what is shown is that our model, losses and settings fit the sharding.
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

from gemma3vl_app.finetune.methods import put_method
from gemma3vl_app.finetune.train import finetune
from gemma3vl_app.finetune.trained_files import whole_tensors
from tests.finetune.conftest import but
from tests.finetune.sharded_worker import inputs, two_steps
from tests.finetune.test_train import losses, only_projector

ROOT = Path(__file__).parents[2]
SHARDED = {"sft": {"train_projector": True, "train_vision_tower": True}, "lora": {}}


@pytest.fixture(scope="module")
def data(pictures, tmp_path_factory):
    """Four items, one of them without a picture: one process' share has none in some step."""
    lines = [json.loads(line) for line in (pictures / "data.jsonl").read_text().splitlines()[:3]]
    for line in lines:
        line["picture"] = str(pictures / line["picture"])
    lines.insert(1, {"question": "Say yes.", "answer": "Yes."})
    file = tmp_path_factory.mktemp("data") / "four.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def of_method(recipe, method, data, out):
    return but(
        recipe,
        method=method,
        data=str(data),
        out=str(out),
        micro_batch=2,
        sharding="fsdp",
        gpus=2,
        gradient_checkpointing=True,
        **SHARDED[method],
    )


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
    recipe = but(recipe, model=str(small))
    alone = only_projector(recipe, data=str(data), max_steps=2)
    together = but(alone, micro_batch=1, global_batch=4, out=str(tmp_path / "ddp"))
    split = {method: of_method(recipe, method, data, tmp_path / method) for method in SHARDED}
    run_two([together, *split.values()])
    # 1) A training under a launcher, each process with a copy (DDP)
    finetune(alone)
    assert len(losses(alone.out)) == 2
    assert losses(together.out) == pytest.approx(losses(alone.out), abs=1e-4)
    one, two = (load_file(Path(each.out) / "model/model.safetensors") for each in (alone, together))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-4), name
    # 2) Steps with shards: the worker asserts that every parameter is a DTensor
    for method, each in split.items():
        model, collate, examples = inputs(each)
        model = put_method(model, each)
        before = {name: t.clone() for name, t in whole_tensors(model, only_trained=True)}
        expected = two_steps(model, collate, examples, shares=1)
        assert json.loads((tmp_path / method / "losses.json").read_text()) == pytest.approx(
            expected, abs=1e-5
        )
        tensors = load_file(tmp_path / method / "trained.safetensors")
        after = dict(whole_tensors(model, only_trained=True))
        assert tensors.keys() == after.keys()
        assert any(not torch.equal(before[name], after[name]) for name in after)
        for name, tensor in after.items():
            assert torch.allclose(tensors[name], tensor, atol=1e-5), name
