"""transformers' `Trainer` with our loss, our checkpoints and our news; and a recipe's arguments."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from gemma3vl_app.errors import TrainingError
from gemma3vl_app.finetune.collate import Batch, Collator, answer_loss
from gemma3vl_app.finetune.data import TrainingData
from gemma3vl_app.finetune.methods import trainable
from gemma3vl_app.finetune.recipe import Recipe
from gemma3vl_app.generation import Progress

logger = logging.getLogger(__name__)

TRAINED_FILE = "trained.safetensors"
KEPT_CHECKPOINTS = 2  # the best one and the last one
WORKERS = 4  # processes that decode pictures beside a GPU

# What FSDP2 shares out and gathers as one; all else is one more group.
SHARDED_LAYERS = ("Gemma3DecoderLayer", "SiglipEncoderLayer")
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class AnswerTrainer(Trainer):
    """Train on answers only; checkpoints hold what is trained, by its in-memory names.

    The Trainer's own checkpoints of a whole Gemma 3 have the hub's names, and it does not find
    them again by these: a training would go on from the weights that it began with, with no more
    than a line in the log.
    """

    loss_is_scaled_for_ga = True  # by the number of tokens in all batches of a step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of this process' share, so that the mean over processes is that of all.

        The Trainer counts the learned tokens over all micro-batches and processes of a step.
        """
        loss = answer_loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over them
        return (loss, {"loss": loss}) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: each.detach().contiguous() for k, each in self._trained().items()}
        save_file(tensors, folder / TRAINED_FILE, metadata={"format": "pt"})

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_trained(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            super()._load_best_model()
        elif self.state.best_model_checkpoint is not None:
            self._load_trained(Path(self.state.best_model_checkpoint))

    def _trained(self) -> dict[str, nn.Parameter]:
        assert isinstance(self.model, nn.Module)
        return trainable(self.model)

    def _load_trained(self, checkpoint: Path) -> None:
        stored = load_file(checkpoint / TRAINED_FILE)
        parameters = self._trained()
        if stored.keys() != parameters.keys():
            raise TrainingError(f"{checkpoint.name} is of another training. Remove its folder.")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(stored[name])


class Reporter(TrainerCallback):
    """Tell of each step and evaluation, and stop a training whose loss is not a number."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass on what was logged: the loss of a step, or of an evaluation."""
        logs = logs or {}
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise TrainingError(
                    f"The loss is not a number any more at step {state.global_step}. "
                    "Lower learning_rate, or set precision=fp32."
                )
            message = f"loss {logs['loss']:.4f}"
        elif "eval_loss" in logs:
            message = f"evaluation loss {logs['eval_loss']:.4f}"
        else:
            return
        if state.is_world_process_zero:
            self._report(Progress("train", state.global_step, state.max_steps, "steps", message))


def make_trainer(
    model: nn.Module,
    recipe: Recipe,
    data: TrainingData,
    collator: Collator,
    checkpoints: Path,
    *,
    bf16: bool,
    report: Callable[[Progress], None],
) -> AnswerTrainer:
    """Return the trainer of a recipe in this process."""
    arguments = training_arguments(
        recipe, checkpoints, bf16=bf16, evaluates=bool(data.evaluation), seen=len(data.train)
    )
    callbacks: list[TrainerCallback] = [Reporter(report)]
    if data.evaluation and recipe.patience:
        callbacks.append(EarlyStoppingCallback(recipe.patience))
    trainer = AnswerTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=list(data.train),  # a list is a dataset to torch
        eval_dataset=list(data.evaluation) or None,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(
    recipe: Recipe, checkpoints: Path, *, bf16: bool, evaluates: bool, seen: int
) -> TrainingArguments:
    """Return transformers' arguments for a recipe in this process, one of `process_count()`."""
    on_gpu = torch.cuda.is_available()
    stops_early = evaluates and recipe.patience > 0
    settings: dict[str, Any] = {}
    if recipe.sharding == "fsdp":
        settings["fsdp"] = True
        settings["fsdp_config"] = fsdp_settings(recipe)
        # Or gradients of all micro-batches but the last would be kept whole on every GPU.
        each_batch = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        settings["accelerator_config"] = each_batch
    elif recipe.gradient_checkpointing:
        settings["activation_checkpointing"] = True
        settings["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    if stops_early:
        settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
        settings |= {"greater_is_better": False}
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=recipe.micro_batch,
        per_device_eval_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=accumulated_batches(recipe),
        num_train_epochs=recipe.epochs,
        max_steps=-1 if recipe.max_steps is None else recipe.max_steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=SCHEDULES[recipe.schedule],
        warmup_steps=_warmup_steps(recipe, seen),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=bf16,
        optim="adamw_torch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=recipe.eval_every,
        save_strategy="steps",
        # The best model can only be kept where it was evaluated.
        save_steps=recipe.eval_every if stops_early else recipe.save_every,
        save_total_limit=KEPT_CHECKPOINTS,
        restore_callback_states_from_checkpoint=True,
        seed=recipe.seed,
        report_to="none",
        remove_unused_columns=False,
        prediction_loss_only=True,
        label_names=["labels"],
        disable_tqdm=True,
        use_cpu=not on_gpu,
        dataloader_num_workers=WORKERS if on_gpu else 0,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,  # the collator gives every process a picture
        **settings,
    )
    # Several GPUs without a launcher would be used as one slow one (torch's DataParallel).
    _ = arguments.device
    arguments._n_gpu = min(arguments._n_gpu, 1)
    return arguments


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


def fsdp_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of FSDP2 for a recipe, as `TrainingArguments.fsdp_config` takes them."""
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": list(SHARDED_LAYERS),
        "reshard_after_forward": True,
        "activation_checkpointing": recipe.gradient_checkpointing,
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": True,
    }


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


def _warmup_steps(recipe: Recipe, seen: int) -> int:
    steps = recipe.max_steps
    if steps is None:
        steps = math.ceil(recipe.epochs * math.ceil(seen / recipe.global_batch))
    return math.ceil(steps * recipe.warmup_ratio)
