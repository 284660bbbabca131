"""What a training leaves: an adapter as peft writes it, or a whole checkpoint in the hub's layout.

Folders appear whole or not at all. Tensors are fetched, converted and written one after the other,
so that memory holds one shard, however large the model, and however it was spread over processes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from gemma3vl_app.errors import TrainingError
from gemma3vl_app.loading.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from gemma3vl_app.loading.checkpoint import hub_name
from gemma3vl_app.loading.checkpoint_files import (
    SHARD_BYTES,
    CheckpointFacts,
    config_for,
    write_json,
    write_small_files,
)

# Names of peft in memory, where "default" is the adapter's name, and in its files
DORA_SUFFIX, DORA_STORED = "lora_magnitude_vector.default.weight", "lora_magnitude_vector"
CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module."  # how torch calls it in names


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Make a folder that takes the place of `target` when the block ends, and not before.

    Raises `TrainingError` where `target` is there already, or cannot be written.
    """
    if target.exists():
        raise TrainingError(f"{target.name!r} is there already. Choose another folder, or move it.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield work
            work.chmod(0o777 & ~_umask())  # mkdtemp's is for its owner only
            work.rename(target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise TrainingError(
            f"{target.name!r} cannot be written: {why}. "
            "Free some disk space, or choose another folder."
        ) from error


def write_checkpoint(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    facts: CheckpointFacts,
    dtype: torch.dtype,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint in the hub's layout into the empty `folder`.

    `tensors` come by their in-memory names, without a tied output matrix, most of them in `dtype`;
    no more than `shard_bytes` and one tensor are held. `facts` are those of the model it came from.
    """
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    size = total = parameters = 0

    def write_shard() -> None:
        save_file(held, folder / f"part-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))

    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            write_shard()
            held, size = {}, 0
        held[hub_name(name)] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
        parameters += tensor.numel()
    write_shard()
    files = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    files = files if len(files) > 1 else ["model.safetensors"]
    for number, file in enumerate(files):
        (folder / f"part-{number}").rename(folder / file)
    if len(files) > 1:
        weight_map = {key: file for file, keys in zip(files, shards, strict=True) for key in keys}
        metadata = {"total_size": total, "total_parameters": parameters}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)
    write_small_files(folder, facts, config_for(facts.config, dtype))


def write_adapter(folder: Path, model: Any, tensors: Mapping[str, torch.Tensor], base: str) -> None:
    """Write the adapter of a `PeftModel` into the empty `folder`, as peft's save_pretrained does.

    `tensors` are its trained parameters by name, gathered; `base` the model it was trained on.
    peft's own function finds none of them where layers are wrapped, and says nothing.
    """
    stored = {
        name.replace(DORA_SUFFIX, DORA_STORED).replace(".default.", "."): tensor
        for name, tensor in tensors.items()
    }
    on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in stored.items()}
    save_file(on_cpu, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = model.peft_config["default"]
    described = {**config.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    write_json(folder / CONFIG_FILE, described)


def whole_tensors(model: nn.Module, *, only_trained: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters by name, each gathered from all processes where it is shared out.

    All processes must take all of them: gathering is work of all. A tied output matrix is left out.
    Names are those of the model as it was loaded, without the wrapper around a layer whose
    activations are computed twice.
    """
    from torch.distributed.tensor import DTensor

    for wrapped_name, parameter in model.named_parameters():
        name = unwrapped(wrapped_name)
        if name == "lm_head.weight" or (only_trained and not parameter.requires_grad):
            continue
        tensor = parameter.detach()
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def unwrapped(name: str) -> str:
    """Return a parameter's name without the wrapper of layers whose activations are recomputed."""
    return name.replace(CHECKPOINT_WRAPPER, "")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
