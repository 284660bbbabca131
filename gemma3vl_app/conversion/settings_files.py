"""What lies beside the weights of a converted checkpoint, kept from its source."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gemma3vl_app.loading.checkpoint import Checkpoint
from gemma3vl_app.loading.checkpoint_files import write_small_files
from gemma3vl_app.loading.conversion import Stored

# Taken over byte by byte where the source has them; else made of what the source says
KEPT = (
    *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("chat_template.json", "chat_template.jinja"),
    *("tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
)


def write_settings(folder: Path, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Write config.json, and all that a source has beside its weights, into `folder`."""
    write_small_files(folder, checkpoint, config)
    for name in KEPT:
        source = checkpoint.folder / name
        if source.is_file():
            shutil.copyfile(source, folder / name)


def small_files(checkpoint: Checkpoint) -> list[Path]:
    """Return the files beside the weights that what is written depends on."""
    there = [checkpoint.folder / name for name in ("config.json", *KEPT)]
    return [checkpoint.tokenizer_file, *(each for each in there if each.is_file())]


def main_dtype(tensors: Mapping[str, Stored]) -> torch.dtype:
    """Return the dtype of the largest tensor, which config.json names."""
    return max(tensors.values(), key=lambda each: each.nbytes).dtype
