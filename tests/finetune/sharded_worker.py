"""One of two processes of `test_sharding`: a training with DDP, then steps with FSDP2, on gloo.

accelerate never shards on a CPU (it would run DDP, silently): here its own function is called that
shards on GPUs, with the settings that a training passes to it there.
"""

import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_model
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from gemma3vl_app.finetune.collate import IGNORED, Collator, answer_loss
from gemma3vl_app.finetune.methods import trainable
from gemma3vl_app.finetune.processes import process_rank
from gemma3vl_app.finetune.recipe import Recipe
from gemma3vl_app.finetune.sources import read_jsonl
from gemma3vl_app.finetune.train import finetune, model_to_train
from gemma3vl_app.finetune.trained_files import whole_tensors
from gemma3vl_app.finetune.trainer import training_arguments
from gemma3vl_app.loading import load_model
from gemma3vl_app.prompting import PromptFormat, TextTokenizer

STEPS = 2


def two_steps(model, collate, examples, shares):
    """Train some steps of plain SGD on this process' share of the examples; return the losses."""
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
    tokens = int((collate(examples)["labels"] != IGNORED).sum())
    batch = collate(examples[process_rank() :: shares])
    losses = []
    for _ in range(STEPS):
        loss = answer_loss(model, batch, tokens) * shares  # gradients are averaged
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if shares > 1:
            torch.distributed.all_reduce(losses[-1], torch.distributed.ReduceOp.AVG)
    return [each.item() for each in losses]


def inputs(recipe):
    loaded = load_model(recipe.model, weights="fp32", for_training=True)
    tokenizer = read_tokenizer(loaded.tokenizer_file)
    format = PromptFormat.from_config(loaded.config, loaded.preprocessor, tokenizer)
    examples = read_jsonl(Path(recipe.data))[:4]
    return loaded.model, Collator(tokenizer, format, always_pictures=True), examples


read_tokenizer = cache(TextTokenizer.from_file)


def sharded(recipe):
    """Return the model of a recipe, shared out over the processes as accelerate does on GPUs."""
    whole, collate, examples = inputs(recipe)
    model = model_to_train(whole, recipe, is_first=process_rank() == 0)
    arguments = training_arguments(recipe, Path(recipe.out), bf16=False, evaluates=False, seen=4)
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    plugin.set_auto_wrap_policy(model)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=process_rank() == 0,
        device=torch.device("cpu"),
        torch_device_mesh=None,
    )
    if plugin.activation_checkpointing:
        model = fsdp2_apply_ac(accelerator, model)
    return fsdp2_prepare_model(accelerator, model), collate, examples


def main():
    torch.set_num_threads(1)
    for settings in json.loads(sys.argv[1]):
        recipe = Recipe(**settings)
        if recipe.sharding == "none":
            finetune(recipe)  # starts the group of processes
            continue
        model, collate, examples = sharded(recipe)
        parameters = dict(model.named_parameters())
        assert all(isinstance(each, DTensor) for each in parameters.values())
        assert all(each.to_local().numel() < each.numel() for each in parameters.values())
        losses = two_steps(model, collate, examples, shares=2)
        tensors = {
            name.replace("_checkpoint_wrapped_module.", ""): each.contiguous()
            for name, each in whole_tensors(model, only_trained=True)
        }
        if process_rank() == 0:
            folder = Path(recipe.out)
            folder.mkdir()
            save_file(tensors, folder / "trained.safetensors")
            (folder / "losses.json").write_text(json.dumps(losses))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
