"""A checkpoint of Megatron-Core, as Megatron Bridge leaves one when it has imported a model.

One iteration's folder with its weights in the format of torch.distributed.checkpoint, Megatron's
small files beside it, and the model's own, which are needed to come back.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from gemma3vl_app.conversion.config_forms import published_config
from gemma3vl_app.conversion.dcp_reader import DIRECTORY
from gemma3vl_app.conversion.dcp_writer import write_dcp
from gemma3vl_app.conversion.megatron_config import run_config
from gemma3vl_app.conversion.megatron_layers import Piece, empty_states, in_pieces
from gemma3vl_app.conversion.megatron_names import megatron_table
from gemma3vl_app.conversion.names import to_file
from gemma3vl_app.conversion.options import Options
from gemma3vl_app.conversion.settings_files import main_dtype, write_settings
from gemma3vl_app.conversion.shard_files import whole_file
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.conversion import Stored
from gemma3vl_app.loading.loader import build_skeleton
from gemma3vl_app.loading.sources import Source

# Megatron takes no iteration 0 for a place to start from: what no training has written is a release
RELEASE, TRACKER = "release", "latest_checkpointed_iteration.txt"
BACKENDS = {  # what Megatron-Core's dist_checkpointing looks for first
    **{"sharded_backend": "torch_dist", "sharded_backend_version": 1},
    **{"common_backend": "torch", "common_backend_version": 1},
}
# What Megatron keeps outside of tensors. Its content metadata says that layers are stacked.
COMMON = {
    "checkpoint_version": 3.0,
    "iteration": 0,
    "content_metadata": {"singleton_local_shards": False},
}


def write(source: Source, target: Path, options: Options, report: Report) -> None:
    """Write `source` into the folder `target`; weights that are finished there stay as they are."""
    folder = target / RELEASE
    folder.mkdir(exist_ok=True)
    if not (folder / DIRECTORY).is_file():  # it is written last
        _write_weights(folder, _named(source), report)
    with whole_file(folder / "common.pt") as file:
        torch.save(COMMON, file)
    dtype = main_dtype(source.tensors)
    (folder / "metadata.json").write_text(json.dumps(BACKENDS), encoding="utf-8")
    text = run_config(build_skeleton(source.checkpoint).config, dtype)
    (folder / "run_config.yaml").write_text(text, encoding="utf-8")
    write_settings(target, source.checkpoint, published_config(source.checkpoint, dtype))
    (target / TRACKER).write_text(RELEASE, encoding="utf-8")


def needs_bytes(source: Source, options: Options) -> int:
    """Return the size of the weights, with the rows that pad the embeddings."""
    return sum(each.part.nbytes for each in in_pieces(_named(source)))


def _named(source: Source) -> dict[str, Stored]:
    """Return the tensors by Megatron's names, with a name for each layer."""
    text = build_skeleton(source.checkpoint).config.get_text_config()
    return to_file(source.tensors, megatron_table(text.head_dim))


def _write_weights(folder: Path, named: dict[str, Stored], report: Report) -> None:
    pieces = in_pieces(named)
    total = sum(each.part.nbytes for each in pieces)
    done = 0

    def about_to(piece: Piece) -> None:
        nonlocal done
        report(Progress("convert", done, total, "bytes", f"Writing {piece.key}"))
        done += piece.part.nbytes

    write_dcp(folder, pieces, empty_states(named), about_to)
    report(Progress("convert", total, total, "bytes", "All weights are written"))
