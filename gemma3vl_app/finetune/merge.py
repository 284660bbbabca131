"""`merge`: an adapter folded into its base, as a checkpoint of its own in the hub's layout.

Works from file to file, a matrix at a time: a 27B model needs no more memory than a shard. Shapes:
r rank, N output features, K input features.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch

from gemma3vl_app.errors import LoadError, TrainingError
from gemma3vl_app.finetune.trained_files import SHARD_BYTES, whole_folder, write_checkpoint
from gemma3vl_app.generation import Progress
from gemma3vl_app.loading import nf4
from gemma3vl_app.loading.adapter_files import StoredAdapter, StoredLora, read_adapter
from gemma3vl_app.loading.assembly import weight_names
from gemma3vl_app.loading.conversion import Stored, is_nf4, parts_of
from gemma3vl_app.loading.loader import build_skeleton
from gemma3vl_app.loading.sources import open_source

Precision = Literal["stored", "bf16", "fp32"]

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TEXT, VISION_TEXT = "model.", "model.language_model."


def merge(
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    precision: Precision = "stored",
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Fold the adapter in folder `adapter` into the model `base`, and write it to folder `out`.

    `base` is what `load` takes. Products are added in fp32, then rounded to what the base is stored
    in (bf16 where that is 4 bits), or to `precision`. `out` appears whole or not at all.
    Raises `LoadError` for a base or an adapter that cannot be read or do not fit each other, and
    `TrainingError` where `out` is there already or cannot be written.
    """
    report = progress or (lambda step: None)
    stored = read_adapter(Path(adapter).name, adapter)
    source = open_source(base, revision=revision, report=report)
    names = weight_names(build_skeleton(source.checkpoint))
    if missing := [name for name in names if name not in source.tensors]:
        raise LoadError(f"{source.checkpoint.name!r} lacks weights: {missing[0]}. Copy it again.")
    layers = {_target(stored, layer, source.tensors): layer for layer in stored.layers}
    dtype = DTYPES.get(precision) or _stored_dtype(names, source.tensors)
    target = Path(out).expanduser()
    _check_room(target, sum(_bytes(name, source.tensors, dtype) for name in names))

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for done, name in enumerate(names):
            report(Progress("merge", done, len(names), "weights", f"Merging {stored.name}"))
            weight = _dense(name, source.tensors)
            if name in layers:
                weight = _merged(stored, name, weight, layers[name]).to(dtype)
            elif precision != "stored" or is_nf4(name, source.tensors):
                weight = weight.to(dtype)
            yield name, weight

    with whole_folder(target) as folder:
        write_checkpoint(folder, tensors(), source.checkpoint, dtype, shard_bytes=shard_bytes)
    report(Progress("merge", len(names), len(names), "weights", f"{target.name} is ready"))
    return target


def _target(stored: StoredAdapter, layer: StoredLora, tensors: Mapping[str, Stored]) -> str:
    """Return the name of the weight that a layer adapts.

    Adapters of the text-only class fit the language model of a vision-language model, and the other
    way round.
    """
    name = f"{layer.module}.weight"
    if name not in tensors:
        if name.startswith(VISION_TEXT):
            name = TEXT + name.removeprefix(VISION_TEXT)
        else:
            name = VISION_TEXT + name.removeprefix(TEXT)
    if name not in tensors or len(tensors[name].shape) != 2 or "embed" in name:
        raise LoadError(
            f"Adapter {stored.name!r} adapts {ascii(layer.module)[:80]}, which is no linear layer "
            f"of this model. Merge it into the model it was trained on"
            f"{f', {stored.base}' if stored.base else ''}."
        )
    return name


@torch.no_grad()
def _merged(
    stored: StoredAdapter, name: str, weight: torch.Tensor, layer: StoredLora
) -> torch.Tensor:
    """Return W + scaling B A in fp32 (N, K); for DoRA with each row scaled to its magnitude."""
    if tuple(weight.shape) != (layer.b.shape[0], layer.a.shape[1]):
        raise LoadError(
            f"Adapter {stored.name!r} was made for another size: its {name} is {layer.b.shape[0]} "
            f"x {layer.a.shape[1]}, this model's {weight.shape[0]} x {weight.shape[1]}."
        )
    product = layer.b.read().float() @ layer.a.read().float()
    merged = weight.float() + layer.scaling * product
    if layer.magnitude is not None:
        # Equation 5 of https://arxiv.org/abs/2402.09353
        norms = merged.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        merged *= (layer.magnitude.read().float().reshape(-1) / norms)[:, None]
    if not torch.isfinite(merged).all():
        raise LoadError(
            f"Adapter {stored.name!r} holds values that are not numbers, in {name}: its training "
            "went wrong, or the file is damaged."
        )
    return merged


def _dense(name: str, tensors: Mapping[str, Stored]) -> torch.Tensor:
    """Return a weight in numbers, however it is stored."""
    if not is_nf4(name, tensors):
        return tensors[name].read()
    parts = {suffix: part.read() for suffix, part in parts_of(name, tensors).items()}
    return nf4.dequantise(parts)


def _stored_dtype(names: list[str], tensors: Mapping[str, Stored]) -> torch.dtype:
    """Return the dtype of most matrices, or bf16 where they are quantised."""
    largest = max(names, key=lambda name: tensors[name].nbytes)
    dtype = tensors[largest].dtype
    return dtype if dtype.is_floating_point else torch.bfloat16


def _bytes(name: str, tensors: Mapping[str, Stored], dtype: torch.dtype) -> int:
    count = tensors[name].nbytes // tensors[name].dtype.itemsize
    return count * (2 if is_nf4(name, tensors) else 1) * dtype.itemsize


def _check_room(target: Path, needed: int) -> None:
    here = next(each for each in target.resolve().parents if each.exists())
    free = shutil.disk_usage(here).free
    if needed > free:
        raise TrainingError(
            f"{target.name!r} needs {needed / 2**30:.1f} GiB of disk space, and "
            f"{free / 2**30:.1f} GiB are free. Free some, or choose another disk."
        )
