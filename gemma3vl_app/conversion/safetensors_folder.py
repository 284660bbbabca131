"""A checkpoint in safetensors: as Google publishes it on the hub, or as transformers 5 saves it.

The two differ in the names of weights and in config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gemma3vl_app.conversion.config_forms import published_config, transformers5_config
from gemma3vl_app.conversion.names import HUB, TRANSFORMERS5, NameTable, to_file
from gemma3vl_app.conversion.options import Options
from gemma3vl_app.conversion.settings_files import main_dtype, write_settings
from gemma3vl_app.conversion.shard_files import plain_units, write_shards
from gemma3vl_app.generation import Report
from gemma3vl_app.loading.checkpoint import Checkpoint
from gemma3vl_app.loading.sources import Source


@dataclass(frozen=True)
class SafetensorsFolder:
    """What writes one of the two: its names of weights, and its config.json."""

    names: NameTable
    config: Callable[[Checkpoint, torch.dtype], dict[str, Any]]

    def write(self, source: Source, target: Path, options: Options, report: Report) -> None:
        """Write `source` into the folder `target`; what is finished there stays as it is."""
        units = plain_units(to_file(source.tensors, self.names))
        write_shards(target, units, options.largest_file_bytes, report)
        config = self.config(source.checkpoint, main_dtype(source.tensors))
        write_settings(target, source.checkpoint, config)

    def needs_bytes(self, source: Source, options: Options) -> int:
        """Return the size of the weights."""
        return source.weight_bytes


AS_PUBLISHED = SafetensorsFolder(HUB, published_config)
AS_TRANSFORMERS5 = SafetensorsFolder(TRANSFORMERS5, transformers5_config)
