"""One of two processes of `test_sharding`: whole trainings with DDP, then with FSDP2, on gloo.

accelerate shards on GPUs only; its code that does so runs on a CPU as well once it takes the
processes for ones with a GPU each, and that is all that is pretended here.
"""

import json
import os
import shutil
import sys
from functools import cache
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from gemma3vl_app.finetune import train
from gemma3vl_app.finetune.processes import process_rank
from gemma3vl_app.finetune.recipe import Recipe
from gemma3vl_app.prompting import TextTokenizer


def pretend_gpus():
    """Let accelerate believe that each process has a GPU, whose name is cpu."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *arguments: ("gloo", DistributedType.MULTI_GPU)


def assert_shared_out(model):
    """Assert that this process holds a part of every parameter, layer by layer."""
    parameters = dict(model.named_parameters())
    assert all(isinstance(each, DTensor) for each in parameters.values())
    assert all(each.to_local().numel() < each.numel() for each in parameters.values())
    shared_out = {type(each).__name__ for each in model.modules() if isinstance(each, FSDPModule)}
    assert {"FSDPGemma3DecoderLayer", "FSDPSiglipEncoderLayer"} <= {*shared_out} or {
        "FSDPCheckpointWrapper"
    } <= shared_out, shared_out


def train_again_from_the_first_checkpoint(recipe):
    """Remove what came behind it, as if the training had been killed there, and go on."""
    run = Path(recipe.out)
    torch.distributed.barrier()
    if process_rank() == 0:
        (run / "history.json").rename(run / "history-1.json")
        result = "model" if recipe.method == "sft" else "adapter"
        (run / result).rename(run / f"{result}-1")
        assert sorted(each.name for each in (run / "checkpoints").iterdir()) == [
            "checkpoint-1",
            "checkpoint-2",
        ]
        shutil.rmtree(run / "checkpoints" / "checkpoint-2")
    torch.distributed.barrier()
    seen = []
    train.finetune(recipe, progress=lambda step: seen.append(step))
    if process_rank() == 0:
        assert min(each.done for each in seen if each.stage == "train") == 2


def main():
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    TextTokenizer.from_file = cache(TextTokenizer.from_file)
    gather = train.whole_tensors

    for settings in json.loads(sys.argv[1]):
        recipe = Recipe(**settings)
        if recipe.sharding == "none":
            train.finetune(recipe)
            continue
        pretend_gpus()

        def gather_shares(model, **kwargs):
            assert_shared_out(model)
            return gather(model, **kwargs)

        train.whole_tensors = gather_shares
        train.finetune(recipe)
        train_again_from_the_first_checkpoint(recipe)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
