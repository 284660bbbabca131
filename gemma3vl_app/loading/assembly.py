"""A model out of stored tensors: each parameter onto its device, quantised layers put in place.

Builds transformers' own classes; knows nothing of where tensors come from or of the plan's reasons.
Parts compute where they lie. What lies on the CPU in the right dtype stays a memory map of its
file; "disk" is the same, but not read ahead: the system fetches its pages while computing, and may
drop them again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration
from transformers.models.gemma3.modeling_gemma3 import (
    Gemma3RMSNorm,
    Gemma3RotaryEmbedding,
    Gemma3TextScaledWordEmbedding,
)
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading import compiled_bf16, int4, int8, nf4, w16
from gemma3vl_app.loading.conversion import Stored, device_of, parts_of
from gemma3vl_app.loading.norms import FusedRMSNorm
from gemma3vl_app.planning import LoadPlan

Model = Gemma3ForConditionalGeneration | Gemma3ForCausalLM

# The modules that are placed as one
PART = re.compile(
    r"lm_head|model\.(vision_tower|multi_modal_projector)"
    r"|model\.(language_model\.)?(embed_tokens|norm|rotary_emb|layers\.\d+)"
)


def assemble(
    model: Model,
    tensors: Mapping[str, Stored],
    plan: LoadPlan,
    name: str,
    report: Report,
    *,
    for_inference: bool = True,
) -> Model:
    """Fill `model`, a skeleton on the meta device, with `tensors` (in the plan's form).

    `for_inference` takes kinds of layers that are faster, and give no gradient to their weights.
    Raises `LoadError` for a weight that is not a number.
    """
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())
    for key in weight_names(model):
        placed = device_of(key, plan.device_map)
        device = torch.device("cpu" if placed == "disk" else placed)
        parts = {suffix: part.read() for suffix, part in parts_of(key, tensors).items()}
        done += sum(part.nbytes for part in parts.values())
        if placed != "disk":
            parts = {suffix: part.to(device) for suffix, part in parts.items()}
            _check_finite(parts, key, name)
            if int8.SCALE in parts:  # once, and not with each token
                parts[""] = int8.aligned(parts[""])
        _put(model, key, parts, plan, device, for_inference=for_inference)
        report(Progress("load", done, total, "bytes", f"Loading {name}"))
    _compute_buffers(model, plan.device_map)
    _tie_head(model, plan, for_inference=for_inference)
    _connect_devices(model, plan.device_map)
    model.train(False)
    model.requires_grad_(False)
    return model


def weight_names(model: Model) -> list[str]:
    """Return the names of the parameters that a checkpoint has to hold, in the model's order."""
    return [name for name, _ in model.named_parameters() if name != "lm_head.weight"]


def arithmetic_of(model: Model) -> torch.dtype:
    """Return the dtype a model computes in; its norms have it whatever form its matrices have."""
    core: Any = model.model
    dtype: torch.dtype = getattr(core, "language_model", core).norm.weight.dtype
    return dtype


def _put(
    model: Model,
    key: str,
    parts: dict[str, torch.Tensor],
    plan: LoadPlan,
    device: torch.device,
    *,
    for_inference: bool,
) -> None:
    """Put one weight into the model: as a parameter, or as a layer of another kind around it."""
    module_name, _, parameter = key.rpartition(".")
    module = model.get_submodule(module_name)
    dtype: torch.dtype = getattr(torch, plan.dtype)
    if isinstance(module, Gemma3TextScaledWordEmbedding):
        model.set_submodule(module_name, _embeddings(module, parts, plan))
    elif isinstance(module, Gemma3RMSNorm) and for_inference:
        norm = FusedRMSNorm(0, module.eps)
        norm.take(parts[""].to(dtype))
        model.set_submodule(module_name, norm)
    elif nf4.ABSMAX in parts or nf4.PACKED_ABSMAX in parts:
        assert isinstance(module, torch.nn.Linear), "only matrices of linear layers are quantised"
        shape = (module.out_features, module.in_features)
        model.set_submodule(module_name, nf4.layer(parts, shape, dtype, device))
    elif int4.SCALES in parts:
        model.set_submodule(module_name, int4.Int4Linear(parts))
    elif int8.SCALE in parts:
        model.set_submodule(module_name, int8.Int8Linear(parts, dtype))
    elif parameter == "weight" and (
        (plan.weights == "w16" and isinstance(module, torch.nn.Linear))
        or (for_inference and _is_by_kernel(module, plan, device))
    ):
        model.set_submodule(module_name, w16.Linear16(parts[""]))
    else:
        value = torch.nn.Parameter(parts[""].to(dtype), requires_grad=False)
        setattr(module, parameter, value)


def _embeddings(
    skeleton: Gemma3TextScaledWordEmbedding, parts: dict[str, torch.Tensor], plan: LoadPlan
) -> Gemma3TextScaledWordEmbedding:
    """Return the embeddings over a table in its stored form."""
    dtype: torch.dtype = getattr(torch, plan.dtype)
    padding = 0 if skeleton.padding_idx is None else skeleton.padding_idx
    sizes = (skeleton.num_embeddings, skeleton.embedding_dim, padding)
    with torch.device("meta"):
        if int8.SCALE in parts:
            quantised = int8.Int8Embedding(*sizes, skeleton.scalar_embed_scale)
            quantised.take(parts, dtype)
            return quantised
        kind = w16.Embedding16 if plan.weights == "w16" else Gemma3TextScaledWordEmbedding
        embeddings = kind(*sizes, skeleton.scalar_embed_scale)
    table = parts[""].to(torch.bfloat16 if plan.weights == "w16" else dtype)
    embeddings.weight = torch.nn.Parameter(table, requires_grad=False)
    return embeddings


def _is_by_kernel(module: torch.nn.Module, plan: LoadPlan, device: torch.device) -> bool:
    """Whether `module` is a matrix in bfloat16 that has a kernel of ours for a few rows."""
    return (
        plan.row_kernels
        and device.type == "cpu"
        and isinstance(module, torch.nn.Linear)
        and module.bias is None
        and compiled_bf16.is_here()
    )


def _tie_head(model: Model, plan: LoadPlan, *, for_inference: bool) -> None:
    """Make the output matrix of the embeddings: the same memory."""
    table: Any = model.get_input_embeddings()
    if isinstance(table, int8.Int8Embedding):
        scale = {int8.SCALE: table.scale}
        model.lm_head = int8.Int8Linear({"": table.weight.data, **scale}, table.scale.dtype)
    elif isinstance(table, w16.Embedding16) or (
        for_inference and _is_by_kernel(model.lm_head, plan, table.weight.device)
    ):
        model.lm_head = w16.Linear16(table.weight.data)
    else:
        model.lm_head.weight = table.weight


def _check_finite(parts: Mapping[str, torch.Tensor], key: str, name: str) -> None:
    """Raise `LoadError` for weights that are not numbers; also fetches a memory map's pages.

    The extremes of a tensor are found at the speed of memory, and are not finite where any of its
    values is not.
    """
    for part in parts.values():
        if part.is_floating_point() and part.numel():
            least, largest = torch.aminmax(part)
            if not bool(torch.isfinite(least) & torch.isfinite(largest)):
                raise LoadError(
                    f"{name!r} holds weights that are not numbers, in {key}: the files are "
                    "damaged, or a conversion went wrong. Download or convert the model again."
                )


def _compute_buffers(model: Model, device_map: Mapping[str, str]) -> None:
    """Compute what no checkpoint holds: rotary frequencies, embedding scale, patch numbers."""
    for name, module in model.named_modules():
        if not any(buffer.is_meta for buffer in module._buffers.values() if buffer is not None):
            continue
        placed = device_of(name, device_map)
        device = torch.device("cpu" if placed == "disk" else placed)
        if isinstance(module, Gemma3RotaryEmbedding):
            fresh = Gemma3RotaryEmbedding(module.config)._buffers
        elif isinstance(module, Gemma3TextScaledWordEmbedding):
            fresh = {"embed_scale": torch.tensor(module.scalar_embed_scale)}
        elif isinstance(module, SiglipVisionEmbeddings):
            fresh = {"position_ids": torch.arange(module.num_positions)[None]}
        else:
            raise LoadError(
                f"This version of transformers has a part ({type(module).__name__}) that is not "
                "known here. Install the version that requirements.txt names."
            )
        for buffer, value in fresh.items():
            assert value is not None
            module._buffers[buffer] = value.to(device)


def _connect_devices(model: Model, device_map: Mapping[str, str]) -> None:
    """Let each part of a sharded model fetch its inputs to the device it lies on.

    Each part, not each entry of the map: behind a layer elsewhere the next one has to fetch back.
    """
    parts = {name: module for name, module in model.named_modules() if PART.fullmatch(name)}
    devices = {name: device_of(name, device_map).replace("disk", "cpu") for name in parts}
    if len(set(devices.values())) == 1:
        return
    for name, module in parts.items():
        module.register_forward_pre_hook(partial(_fetch, devices[name]), with_kwargs=True)


def _fetch(
    device: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """Return a module's inputs on `device`; what is no tensor passes unchanged."""
    return send_to_device(args, device), send_to_device(kwargs, device)
