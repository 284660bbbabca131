"""transformers' `Trainer` with our loss, our checkpoints and our news; and a recipe's arguments."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from gemma3vl_app.errors import TrainingError
from gemma3vl_app.finetune.collate import Batch, Collator, answer_loss, answer_losses
from gemma3vl_app.finetune.data import TrainingData
from gemma3vl_app.finetune.methods import trainable
from gemma3vl_app.finetune.processes import accumulated_batches
from gemma3vl_app.finetune.recipe import Recipe
from gemma3vl_app.finetune.run_folder import KEPT_CHECKPOINTS
from gemma3vl_app.finetune.trained_files import unwrapped, whole_tensors
from gemma3vl_app.generation import Progress

logger = logging.getLogger(__name__)

TRAINED_FILE = "trained.safetensors"
WORKERS = 4  # processes that decode pictures beside a GPU

# What FSDP2 shares out and gathers as one; all else is one more group.
SHARDED_LAYERS = ("Gemma3DecoderLayer", "SiglipEncoderLayer")
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class AnswerTrainer(Trainer):
    """Train on answers only; checkpoints hold what is trained, by its in-memory names.

    The Trainer's own checkpoints of a whole Gemma 3 have the hub's names, and it does not find
    them again by these: a training would go on from the weights that it began with, with no more
    than a line in the log. With FSDP2 its checkpoints of whole models are good, those of adapters
    are lost the same way.
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

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return the loss of each example's tokens in sum, and how many they are: both (B,).

        They go the way of predictions and labels; `mean_loss` makes one number of all of them. The
        Trainer's own would be a mean of the batches' means, in which a short answer counts more.
        """
        with torch.no_grad():
            losses, tokens = answer_losses(model, self._prepare_inputs(inputs))
        return None, losses, tokens

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: each.detach().contiguous() for k, each in self._trained().items()}
        save_file(tensors, folder / TRAINED_FILE, metadata={"format": "pt"})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.is_fsdp_enabled and self._is_adapter():
            whole = {k: each.contiguous() for k, each in self._whole_adapter()}
            if self.args.should_save:
                save_file(whole, Path(output_dir) / TRAINED_FILE, metadata={"format": "pt"})

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.is_fsdp_enabled and not self._is_adapter():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_trained(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled and not self._is_adapter():
            super()._load_best_model()
        elif self.state.best_model_checkpoint is not None:
            self._load_trained(Path(self.state.best_model_checkpoint))

    def _is_adapter(self) -> bool:
        return hasattr(self.model, "peft_config")

    def _whole_adapter(self) -> Iterator[tuple[str, torch.Tensor]]:
        assert isinstance(self.model, nn.Module)
        return whole_tensors(self.model, only_trained=True)

    def _trained(self) -> dict[str, nn.Parameter]:
        assert isinstance(self.model, nn.Module)
        return {unwrapped(name): each for name, each in trainable(self.model).items()}

    def _load_trained(self, checkpoint: Path) -> None:
        stored = load_file(checkpoint / TRAINED_FILE)
        parameters = self._trained()
        if stored.keys() != parameters.keys():
            raise TrainingError(f"{checkpoint.name} is of another training. Remove its folder.")
        with torch.no_grad():
            for name, parameter in parameters.items():
                tensor = stored[name].to(parameter.device)
                if isinstance(parameter, DTensor):  # each process takes its share
                    place = (parameter.device_mesh, parameter.placements)
                    tensor = distribute_tensor(tensor, *place, src_data_rank=None)
                parameter.copy_(tensor)


def mean_loss(evaluated: EvalPrediction) -> dict[str, float]:
    """Return the loss of a token, from the sums and counts of all examples."""
    losses, tokens = np.asarray(evaluated.predictions), np.asarray(evaluated.label_ids)
    return {"loss": float(losses.sum() / tokens.sum())}


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
        recipe,
        checkpoints,
        bf16=bf16,
        evaluates=bool(data.evaluation),
        seen=len(data.train),
        layers=sharded_layers(model),
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
        compute_metrics=mean_loss,
    )
    trainer.remove_callback(PrinterCallback)
    if recipe.sharding == "fsdp" and not trainer.is_fsdp_enabled:  # accelerate says nothing
        raise TrainingError("sharding is fsdp, which needs GPUs. Set sharding=none.")
    return trainer


def training_arguments(
    recipe: Recipe,
    checkpoints: Path,
    *,
    bf16: bool,
    evaluates: bool,
    seen: int,
    layers: Sequence[str] = SHARDED_LAYERS,
) -> TrainingArguments:
    """Return transformers' arguments for a recipe in this process, one of `process_count()`.

    `layers` are the classes of layers that FSDP2 shares out one by one.
    """
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=recipe.micro_batch,
        per_device_eval_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=accumulated_batches(recipe),
        num_train_epochs=recipe.epochs,
        max_steps=-1 if recipe.max_steps is None else recipe.max_steps,
        bf16=bf16,
        seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not on_gpu,
        dataloader_num_workers=WORKERS if on_gpu else 0,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,  # the collator gives every process a picture
        **_optimizer_settings(recipe, seen),
        **_kept_settings(recipe, evaluates),
        **_memory_settings(recipe, layers),
    )
    # The launcher's file does not decide about the arithmetic, the recipe does.
    arguments.mixed_precision = "bf16" if bf16 else "no"
    if recipe.sharding == "fsdp" and bf16:
        # accelerate's own policy would add gradients up in bf16.
        arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.bfloat16
        )
    # Several GPUs without a launcher would be used as one slow one (torch's DataParallel).
    _ = arguments.device
    arguments._n_gpu = min(arguments._n_gpu, 1)
    return arguments


def _optimizer_settings(recipe: Recipe, seen: int) -> dict[str, Any]:
    return {
        "optim": "adamw_torch",
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": SCHEDULES[recipe.schedule],
        "warmup_steps": _warmup_steps(recipe, seen),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
    }


def _kept_settings(recipe: Recipe, evaluates: bool) -> dict[str, Any]:
    """Return when it is evaluated, and which checkpoints are kept."""
    settings = {
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": recipe.eval_every,
        "save_strategy": "steps",
        "save_steps": recipe.save_every,
        "save_total_limit": KEPT_CHECKPOINTS,
        "restore_callback_states_from_checkpoint": True,
    }
    if evaluates and recipe.patience > 0:
        settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
        # The best model can only be kept where it was evaluated.
        settings |= {"greater_is_better": False, "save_steps": recipe.eval_every}
    return settings


def _memory_settings(recipe: Recipe, layers: Sequence[str]) -> dict[str, Any]:
    if recipe.sharding == "fsdp":
        # Or gradients of all micro-batches but the last would be kept whole on every GPU.
        each_batch = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        settings = fsdp_settings(recipe, layers)
        return {"fsdp": True, "fsdp_config": settings, "accelerator_config": each_batch}
    if recipe.gradient_checkpointing:
        kwargs = {"use_reentrant": False}
        return {"activation_checkpointing": True, "activation_checkpointing_kwargs": kwargs}
    return {}


def fsdp_settings(recipe: Recipe, layers: Sequence[str] = SHARDED_LAYERS) -> dict[str, Any]:
    """Return the settings of FSDP2 for a recipe, as `TrainingArguments.fsdp_config` takes them."""
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": list(layers),
        "reshard_after_forward": True,
        "activation_checkpointing": recipe.gradient_checkpointing,
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": True,
    }


def sharded_layers(model: nn.Module) -> list[str]:
    """Return the classes of layers that FSDP2 shares out one by one, of those the model has."""
    found = {type(module).__name__ for module in model.modules()}
    return [name for name in SHARDED_LAYERS if name in found]


def _warmup_steps(recipe: Recipe, seen: int) -> int:
    steps = recipe.max_steps
    if steps is None:
        steps = math.ceil(recipe.epochs * math.ceil(seen / recipe.global_batch))
    return math.ceil(steps * recipe.warmup_ratio)
