"""The processes that train together: what their launcher says of them, and what they agree on.

Each process reads its environment, as torchrun and `accelerate launch` write it. Knows nothing of
models or data.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

import torch

from gemma3vl_app.errors import TrainingError
from gemma3vl_app.finetune.recipe import Recipe

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)  # how long processes wait for one another, as in transformers


def process_count() -> int:
    """Return how many processes train together: what the launcher says, or 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Return the number of this process among all of them."""
    return int(os.environ.get("RANK", "0"))


def local_device() -> str:
    """Return the device of this process: its GPU, or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def accumulated_batches(recipe: Recipe) -> int:
    """Return how many micro-batches each process computes for one step of the optimizer.

    Raises `TrainingError` where the recipe's batches do not share out over the processes.
    """
    processes = process_count()
    accumulated, left = divmod(recipe.global_batch, recipe.micro_batch * processes)
    if left or not accumulated:
        raise TrainingError(
            f"global_batch={recipe.global_batch} does not share out over {processes} process"
            f"{'' if processes == 1 else 'es'} of micro_batch={recipe.micro_batch}. "
            "Choose a multiple."
        )
    return accumulated


def check_launch(recipe: Recipe) -> None:
    """Raise `TrainingError` where these processes are not those that a recipe is made for."""
    accumulated_batches(recipe)
    shared_out = recipe.sharding == "fsdp"
    if shared_out and process_count() == 1:
        raise TrainingError(
            f"sharding is fsdp, which shares the model out over {recipe.gpus} GPUs, and this is "
            f"one process. Run `torchrun --standalone --nproc-per-node {recipe.gpus} -m "
            "gemma3vl_app.cli finetune ...` (docs/finetuning.md has more), or set sharding=none."
        )
    if not shared_out and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise TrainingError(
            "The launch file shares the model out (FSDP), and the recipe says sharding: none. "
            "Launch it with 1x8-ddp.yaml, or set sharding=fsdp."
        )


def join_processes() -> None:
    """Let several processes find one another; one process has nobody to wait for."""
    if process_count() > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def of_first(value: T) -> T:
    """Return in every process the first one's `value`; all must ask, after `join_processes`."""
    if process_count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    said: list[T] = broadcast_object_list([value])
    return said[0]
