"""Stored weights in the form that a plan asks for: converted once, layer by layer, into the cache.

What is already in the right form is used as it lies in its file. What is not (a matrix to quantise,
a 4-bit tower that nothing computes with, a dtype that a memory map cannot change) is converted into
files of its own, one a layer, so that no more than one layer is in memory, and so that the next
load is a memory map. Knows nothing of devices but which names they hold.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Protocol

import torch
from safetensors.torch import save_file

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading import int4, int8, nf4
from gemma3vl_app.loading.cache import cached_folder
from gemma3vl_app.loading.shards import read_headers
from gemma3vl_app.planning import LoadPlan

LONGEST_LABEL = 60  # of a folder name
FORMAT = 3  # raise when converted files change, so that old ones are not taken for new ones

logger = logging.getLogger(__name__)

Form = Literal["plain", "nf4", "nf4-packed", "int8", "int4"]
Shapes = Mapping[str, tuple[int, int]]  # (N, K) by the weight's name


class Stored(Protocol):
    """A tensor that can be read when it is needed."""

    @property
    def dtype(self) -> torch.dtype:
        """Its stored dtype."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its stored shape."""
        ...

    @property
    def nbytes(self) -> int:
        """Its stored size."""
        ...

    def read(self) -> torch.Tensor:
        """Return it, memory-mapped where it lies in a file."""
        ...


@dataclass(frozen=True)
class HeldTensor:
    """A `Stored` tensor that is in memory already."""

    tensor: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.tensor.nbytes

    def read(self) -> torch.Tensor:
        """Return it."""
        return self.tensor


def parts_of(name: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return a weight's stored parts by what follows its name; "" is the weight itself."""
    return {key.removeprefix(name): tensors[key] for key in _part_names(name, tensors)}


def is_nf4(name: str, tensors: Mapping[str, Stored]) -> bool:
    """Whether the weight `name` is stored in 4 bits."""
    return name + nf4.ABSMAX in tensors or name + nf4.PACKED_ABSMAX in tensors


def is_quantised(name: str, tensors: Mapping[str, Stored]) -> bool:
    """Whether the weight `name` is stored in 4 or 8 bits."""
    return is_nf4(name, tensors) or any(
        name + suffix in tensors for suffix in (int8.SCALE, int4.SCALES)
    )


def in_planned_form(
    tensors: Mapping[str, Stored],
    text_linears: Shapes,
    linears: Shapes,
    embeddings: Shapes,
    plan: LoadPlan,
    *,
    name: str,
    fingerprint: str,
    report: Report,
    may_pack: bool = True,
) -> dict[str, Stored]:
    """Return `tensors` with those replaced that `plan` wants in another form.

    `text_linears` are the matrices of the text layers, which may be quantised; `linears` all
    matrices; `embeddings` the table that is the output matrix, too. `fingerprint` changes whenever
    the source's weights do. `may_pack` allows the order of 4-bit weights that the fused CPU kernel
    reads, which gives no gradients.
    """
    dtype: torch.dtype = getattr(torch, plan.dtype)
    # 1) Matrices in another form than planned
    wanted: Form = _planned_form(plan, text_linears, may_pack)
    forms = {
        weight: form
        for weight, shape in linears.items()
        if (form := _new_form(weight, shape, tensors, wanted, weight in text_linears)) is not None
    }
    forms |= {weight: form for weight in embeddings if (form := _table_form(plan)) != "plain"}
    result = _converted(dict(tensors), forms, dtype, f"{name}-{wanted}", fingerprint, report)
    # 2) The others, where a memory map is wanted and the file has another dtype
    wants_map = {"cpu", "disk"} if forms else {"disk"}
    others: dict[str, Form] = {
        key: "plain"
        for key, tensor in result.items()
        if device_of(key, plan.device_map) in wants_map
        and plan.weights != "w16"
        and tensor.dtype.is_floating_point
        and tensor.dtype != dtype
        and not any(is_quantised(weight, result) for weight in (key, key.rpartition(".")[0]))
    }
    return _converted(result, others, dtype, f"{name}-{plan.dtype}", fingerprint, report)


def device_of(key: str, device_map: Mapping[str, str]) -> str:
    """Return the device that a device map gives to a module or tensor: the longest prefix wins."""
    prefix = key
    while prefix and prefix not in device_map:
        prefix = prefix.rpartition(".")[0]
    return device_map[prefix]


def _planned_form(plan: LoadPlan, text_linears: Shapes, may_pack: bool) -> Form:
    if plan.weights == "int8":
        return "int8"
    if plan.weights == "int4":
        if not int4.is_supported():
            raise LoadError(
                "weights='int4' needs a processor with AVX2 or AVX-512, and a torch that uses it. "
                "Use 'int8' here."
            )
        return "int4"
    if plan.weights != "nf4":
        return "plain"
    on_cpu = all(device_of(key, plan.device_map) in ("cpu", "disk") for key in text_linears)
    return "nf4-packed" if may_pack and on_cpu and nf4.packs_for_cpu() else "nf4"


def _table_form(plan: LoadPlan) -> Form:
    """Return the form of the embeddings, which are the output matrix, too."""
    return "int8" if plan.table == "int8" else "plain"


def _new_form(
    weight: str, shape: tuple[int, int], tensors: Mapping[str, Stored], wanted: Form, in_text: bool
) -> Form | None:
    """Return the form that a matrix has to get, or None where it can stay as it is."""
    stored: Form = "nf4" if is_nf4(weight, tensors) else "plain"
    if not in_text:
        wanted = "plain"  # the tower's sizes crash the fused kernel, and gain little
    elif wanted == "int4":
        wanted = "int4" if int4.fits(shape) else "plain"
    elif wanted != "plain" and not nf4.fits(shape, packed=wanted == "nf4-packed"):
        wanted = "plain"
    return None if stored == wanted else wanted


def _converted(
    tensors: dict[str, Stored],
    forms: Mapping[str, Form],
    dtype: torch.dtype,
    label: str,
    fingerprint: str,
    report: Report,
) -> dict[str, Stored]:
    """Return `tensors` with the weights of `forms` replaced by converted ones from the cache."""
    if not forms:
        return tensors

    def build(folder: Path) -> None:
        for done, (part, weights) in enumerate(groups.items()):
            report(Progress("convert", done, len(groups), "parts", f"Converting {label}"))
            converted: dict[str, torch.Tensor] = {}
            for weight in weights:
                converted |= _convert(weight, tensors, forms[weight], dtype)
            save_file(converted, folder / f"{part}.safetensors")
        report(Progress("convert", len(groups), len(groups), "parts", f"Converted {label}"))

    groups = _by_layer(forms)
    settings = [fingerprint, FORMAT, sorted(forms.items()), str(dtype), version("bitsandbytes")]
    if "int4" in forms.values():  # in the order of the kernel here
        settings.append(int4.block_rows())
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", label)[-LONGEST_LABEL:]
    folder = cached_folder(
        f"{slug}-{key}",
        build,
        hashed=False,
        needs_bytes=sum(_bytes_after(tensors[weight], forms[weight], dtype) for weight in forms),
    )
    replaced = {part for weight in forms for part in _part_names(weight, tensors)}
    kept = {key: tensor for key, tensor in tensors.items() if key not in replaced}
    return kept | read_headers(sorted(folder.glob("*.safetensors")), label)


def _convert(
    weight: str, tensors: Mapping[str, Stored], form: Form, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the parts of one weight in its new form, under their names."""
    parts = {suffix: stored.read() for suffix, stored in parts_of(weight, tensors).items()}
    quantised = nf4.ABSMAX in parts
    if form == "nf4-packed":
        parts = nf4.pack_for_cpu(parts if quantised else nf4.quantise(parts[""]))
    else:
        plain = nf4.dequantise(parts) if quantised else parts[""]
        if form == "nf4":
            parts = nf4.quantise(plain)
        elif form == "int8":
            parts = int8.quantise(plain)
        elif form == "int4":
            parts = int4.quantise(plain)
        else:
            parts = {"": plain.to(dtype)}
    return {weight + suffix: part.contiguous() for suffix, part in parts.items()}


def _bytes_after(tensor: Stored, form: Form, dtype: torch.dtype) -> int:
    """Estimate the size of a weight in its new form; its scales count as an eighth more."""
    count = tensor.nbytes * 2 if tensor.dtype == torch.uint8 else tensor.nbytes // 2
    bits = {**_BITS, "plain": 8 * dtype.itemsize}[form]
    return int(count * bits / 8)


_BITS = {"nf4": 4.5, "nf4-packed": 4.25, "int8": 8.1, "int4": 5.0}


def _by_layer(weights: Mapping[str, Form]) -> dict[str, list[str]]:
    """Group weight names by their layer, by which the files are named."""
    groups: dict[str, list[str]] = {}
    for weight in weights:
        found = re.match(r"(?:model\.)?(.*?layers\.\d+)\.", weight)
        groups.setdefault(found[1] if found else "rest", []).append(weight)
    return groups


def _part_names(name: str, tensors: Mapping[str, Stored]) -> Iterator[str]:
    candidates = (name, *(name + suffix for suffix in _PART_SUFFIXES))
    return (key for key in candidates if key in tensors)


_PART_SUFFIXES = (
    nf4.ABSMAX,
    nf4.PACKED_ABSMAX,
    int8.SCALE,
    int4.SCALES,
    *(".quant_map", ".nested_absmax", ".nested_quant_map"),
    *(".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"),
)
