"""`finetune`: from a recipe to an adapter or a checkpoint on disk.

One process here, or many under `accelerate launch` or `torchrun`: each runs this function with the
same recipe. Knows nothing of how a recipe is written or shown.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from gemma3vl_app import catalog, hardware
from gemma3vl_app.errors import PictureError, TrainingDataError, TrainingError
from gemma3vl_app.finetune.collate import Collator
from gemma3vl_app.finetune.data import load_data
from gemma3vl_app.finetune.methods import put_method
from gemma3vl_app.finetune.processes import (
    check_launch,
    join_processes,
    local_device,
    of_first,
    process_count,
    process_rank,
)
from gemma3vl_app.finetune.recipe import Recipe, check_recipe
from gemma3vl_app.finetune.run_folder import RunFolder
from gemma3vl_app.finetune.trained_files import (
    whole_folder,
    whole_tensors,
    write_adapter,
    write_checkpoint,
)
from gemma3vl_app.finetune.trainer import AnswerTrainer, make_trainer
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.assembly import Model
from gemma3vl_app.loading.loader import LoadedModel, load_model
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

SHARED_FOLDER_SECONDS = 60  # after which a file on a shared disk is seen by other machines

FINISHED = (
    "{!r} holds the result of this recipe: nothing is trained. To train anew, as on changed data, "
    "choose another folder (out=...)"
)


def finetune(
    recipe: Recipe,
    *,
    model: LoadedModel | None = None,
    progress: Report | None = None,
) -> Path:
    """Train what `recipe` says, and return the folder of the result.

    That is an adapter for `load(adapters={name: folder})`, or for sft a checkpoint for
    `load(folder)`. A training that ended early goes on from its last checkpoint when it is started
    again, with the very losses it would have had; a finished one returns at once, and says so.
    `model` is one that is loaded already; it is changed, and of no other use afterwards. `progress`
    hears of the data's checks and of each step's loss. Raises `TrainingDataError`,
    `TrainingError`, `RecipeError` and `LoadError`.
    """
    report = progress or (lambda step: None)
    check_recipe(recipe)
    check_launch(recipe)
    run = RunFolder(recipe)
    run.check_recipe()
    join_processes()
    if of_first(run.result.exists()):
        report(Progress("finished", 0, 0, "", FINISHED.format(run.path.name)))
        return run.result
    bf16 = _computes_in_bf16(recipe)
    loaded = model or _load(recipe, bf16, report)
    tokenizer = TextTokenizer.from_file(loaded.tokenizer_file)
    format = PromptFormat.from_config(loaded.config, loaded.preprocessor, tokenizer)
    # 1) The data, before anything is written
    data = load_data(recipe, tokenizer, format, report)
    if not data.train:
        raise TrainingDataError("No example is left to train on. Lower eval_fraction.")
    processes, is_first = process_count(), process_rank() == 0
    run.claim(data.digest, processes, write=is_first)
    _check_shared(run)
    # 2) The method
    trained = model_to_train(loaded.model, recipe, is_first=is_first)
    # 3) The training, from the last whole checkpoint on
    trainer = make_trainer(
        trained,
        recipe,
        data,
        Collator(tokenizer, format, always_pictures=processes > 1),
        run.checkpoints,
        bf16=bf16,
        report=report,
    )
    if is_first:
        run.remove_cut_checkpoints(processes)
    begun = of_first(run.last_checkpoint(processes))
    with _told(run):
        trainer.train(resume_from_checkpoint=None if begun is None else str(begun))
    # 4) The result
    _write_result(run, trainer, loaded, recipe, bf16=bf16, is_first=is_first)
    return run.result


def _check_shared(run: RunFolder) -> None:
    """Raise `TrainingError` where this process sees another folder than the first one."""
    expected = of_first(run.claimed)
    until = time.monotonic() + SHARED_FOLDER_SECONDS
    while run.claimed != expected:
        if time.monotonic() > until:
            raise TrainingError(
                f"Process {process_rank()} does not see what the first one writes into "
                f"{run.path.name!r}. All machines need the same folder: set out=... to one on a "
                "shared disk."
            )
        time.sleep(1)


@contextmanager
def _told(run: RunFolder) -> Iterator[None]:
    """Turn what can end a training midway into one line of what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "Memory ran out. Set micro_batch=1 and gradient_checkpointing=true, lower max_tokens, "
            "or train an adapter (method=lora or qlora)."
        ) from error
    except PictureError as error:
        # From a worker it comes with a traceback in front of what it says.
        said = str(error).splitlines()[-1].removeprefix(f"{_name(PictureError)}: ")
        raise TrainingError(
            f"A picture of the data is gone: {said} Bring it back, and run the same command again."
        ) from error
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        why = getattr(error, "strerror", None) or str(error).splitlines()[0][:120]
        raise TrainingError(
            f"A checkpoint in {run.path.name!r} could not be written: {why}. Free some disk space, "
            "and run the same command again."
        ) from error


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _computes_in_bf16(recipe: Recipe) -> bool:
    if recipe.precision == "auto":
        return hardware.choose_dtype(local_device())[0] == "bfloat16"
    return recipe.precision == "bf16"


def _load(recipe: Recipe, bf16: bool, report: Report) -> LoadedModel:
    return load_model(
        recipe.model,
        weights="nf4" if recipe.method == "qlora" else "bf16" if bf16 else "fp32",
        # Shared out, weights come from the memory map of their files.
        device_map="cpu" if recipe.sharding == "fsdp" else local_device(),
        revision=recipe.revision,
        progress=report,
        for_training=True,
    )


def model_to_train(model: Model, recipe: Recipe, *, is_first: bool) -> nn.Module:
    """Put the recipe's method on the model of this process.

    Where weights are shared out (FSDP2), the first process alone holds their values and hands them
    to the others, which have no more than room for them: memory that is never touched.
    """
    if recipe.sharding != "fsdp" or is_first:
        return put_method(model, recipe)
    _replace_parameters(model, lambda each: each.to("meta"))
    trained = put_method(model, recipe)
    _replace_parameters(trained, lambda each: torch.empty_like(each, device="cpu"))
    return trained


def _replace_parameters(
    model: nn.Module, replacement: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Replace every parameter, one that is used twice by the same one; buffers stay."""
    new: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in new:
                value = replacement(parameter.detach())
                new[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
            if parameter is not None:
                module._parameters[name] = new[id(parameter)]


def _write_result(
    run: RunFolder,
    trainer: AnswerTrainer,
    loaded: LoadedModel,
    recipe: Recipe,
    *,
    bf16: bool,
    is_first: bool,
) -> None:
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if recipe.method == "sft":
        dtype = torch.bfloat16 if bf16 else torch.float32
        tensors = ((k, t.to(dtype)) for k, t in whole_tensors(model, only_trained=False))
        if is_first:
            with whole_folder(run.result) as folder:
                write_checkpoint(folder, tensors, loaded, dtype)
        else:
            for _ in tensors:  # gathering is work of all processes
                pass
    else:
        adapter = dict(whole_tensors(model, only_trained=True))
        if is_first:
            with whole_folder(run.result) as folder:
                write_adapter(folder, model, adapter, _base_name(recipe))
    if is_first:
        run.write_history(trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()


def _base_name(recipe: Recipe) -> str:
    """Return what the adapter names as its model: a hub id where there is one, never a path."""
    entry = catalog.find(recipe.model)
    if entry is not None:
        return entry.repo or entry.name
    path = Path(recipe.model).expanduser()
    return path.resolve().name if path.exists() else recipe.model
