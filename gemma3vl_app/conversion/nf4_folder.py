"""A checkpoint in the hub's layout with the text layers' matrices in 4 bits, by bitsandbytes.

Which matrices, and how, is what loading with weights="nf4" does: the files hold what that computes.
Shapes: N output features, K input features; a block is 64 weights that share one scale.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeGuard

import torch
from transformers import BitsAndBytesConfig

from gemma3vl_app.conversion.config_forms import published_config
from gemma3vl_app.conversion.names import HUB, to_file
from gemma3vl_app.conversion.options import Options
from gemma3vl_app.conversion.quantised import Dequantised
from gemma3vl_app.conversion.settings_files import main_dtype, write_settings
from gemma3vl_app.conversion.shard_files import Unit, plain_units, write_shards
from gemma3vl_app.errors import ConversionError
from gemma3vl_app.generation import Report
from gemma3vl_app.loading import nf4
from gemma3vl_app.loading.conversion import Stored
from gemma3vl_app.loading.loader import build_skeleton, text_matrices
from gemma3vl_app.loading.sources import Source

# As transformers 5 matches them: from the beginning of a module's name in memory
SKIPPED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


NESTED, STATE = ".nested_absmax", ".quant_state.bitsandbytes__nf4"


def write(source: Source, target: Path, options: Options, report: Report) -> None:
    """Write `source` into the folder `target`; what is finished there stays as it is.

    Matrices that the source has in 4 bits keep them.
    """
    _check_precision(options)
    write_shards(target, _units(source), options.largest_file_bytes, report)
    config = published_config(source.checkpoint, main_dtype(source.tensors))
    settings = _quantization_config(source)
    write_settings(target, source.checkpoint, {**config, "quantization_config": settings})


def needs_bytes(source: Source, options: Options) -> int:
    """Return the size of the weights, most of them in 4 bits."""
    _check_precision(options)
    return sum(unit.nbytes for unit in _units(source))


def _check_precision(options: Options) -> None:
    if options.precision != "stored":
        raise ConversionError("In 4 bits there is no other precision. Leave it out for nf4.")


def _units(source: Source) -> list[Unit]:
    units = []
    quantised = _quantised(source)
    for name, stored in source.tensors.items():
        ((key, _),) = to_file({name: stored}, HUB).items()
        if name in quantised:
            units.append(_unit(key, stored))
        else:
            units += plain_units({key: stored})
    return units


def _quantised(source: Source) -> set[str]:
    """Return the names of the matrices that are written in 4 bits."""
    matrices = text_matrices(build_skeleton(source.checkpoint))
    return {name for name, shape in matrices.items() if nf4.fits(shape, packed=False)}


def _unit(key: str, stored: Stored) -> Unit:
    parameters = math.prod(stored.shape)
    if _keeps_its_bits(stored):
        kept = {key + suffix: part for suffix, part in stored.parts.items()}
        outputs = {name: (part.dtype, tuple(part.shape)) for name, part in kept.items()}
        return Unit(outputs, lambda: {n: part.read() for n, part in kept.items()}, parameters)
    described = nf4.quantised_sizes(stored.shape, stored.dtype)
    outputs = {key + suffix: described[suffix] for suffix in described}

    def quantise() -> dict[str, torch.Tensor]:
        parts = nf4.quantise(stored.read())
        return {key + suffix: part for suffix, part in parts.items()}

    return Unit(outputs, quantise, parameters)


def _keeps_its_bits(stored: Stored) -> TypeGuard[Dequantised]:
    return isinstance(stored, Dequantised) and STATE in stored.parts


def _quantization_config(source: Source) -> dict[str, Any]:
    """Return what transformers and bitsandbytes have to know to read the files."""
    quantised = _quantised(source)
    matrices = text_matrices(build_skeleton(source.checkpoint))
    odd = sorted(name.removesuffix(".weight") for name in matrices.keys() - quantised)
    kept = [each for name in quantised if _keeps_its_bits(each := source.tensors[name])]
    settings_class: Any = BitsAndBytesConfig  # its annotations stop half-way
    config = settings_class(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=main_dtype(source.tensors),
        bnb_4bit_use_double_quant=any(NESTED in each.parts for each in kept),
        llm_int8_skip_modules=[*SKIPPED, *odd],
    )
    settings: dict[str, Any] = config.to_dict()
    return settings
