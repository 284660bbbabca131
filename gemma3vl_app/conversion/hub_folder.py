"""A checkpoint as Google publishes it on the hub: its names, its config.json, its files."""

from __future__ import annotations

from pathlib import Path

from gemma3vl_app.conversion.config_forms import published_config
from gemma3vl_app.conversion.formats import Report
from gemma3vl_app.conversion.names import HUB, to_file
from gemma3vl_app.conversion.options import Options
from gemma3vl_app.conversion.settings_files import main_dtype, write_settings
from gemma3vl_app.conversion.shard_files import plain_units, write_shards
from gemma3vl_app.loading.sources import Source


def write(source: Source, target: Path, options: Options, report: Report) -> None:
    """Write `source` into the folder `target`; what is finished there stays as it is."""
    units = plain_units(to_file(source.tensors, HUB))
    write_shards(target, units, options.shard_bytes, report)
    config = published_config(source.checkpoint, main_dtype(source.tensors))
    write_settings(target, source.checkpoint, config)


def needs_bytes(source: Source, options: Options) -> int:
    """Return the size of the weights."""
    return sum(each.nbytes for each in source.tensors.values())
