"""Folders of torch.distributed.checkpoint, written piece by piece by one process.

torch asks for each piece when it is written, and holds the last one of every tensor until all are
written: of a stack of layers one layer, of the tower and the embeddings everything. What lies in a
file as it is takes no memory of its own (its pages are mapped in), what was joined or rounded does.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_saver import save

from gemma3vl_app.conversion.megatron_layers import Piece

Wrote = Callable[[Piece], None]


class _Planner(DefaultSavePlanner):
    """Says what is going to be written, and gives each piece when torch asks for it."""

    def __init__(self, pieces: Sequence[Piece], states: Sequence[str], about_to: Wrote) -> None:
        super().__init__()
        self._pieces = {MetadataIndex(each.key, each.start): each for each in pieces}
        self._states = states
        self._about_to = about_to

    def create_local_plan(self) -> SavePlan:
        items = [_item(index, piece) for index, piece in self._pieces.items()]
        items += [WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO) for key in self._states]
        self.plan = SavePlan(items, planner_data={})
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.type == WriteItemType.BYTE_IO:
            data = io.BytesIO()
            torch.save([None], data)  # Megatron-Core keeps objects in lists
            return data
        piece = self._pieces[write_item.index]
        self._about_to(piece)
        return piece.read()


def write_dcp(
    folder: Path, pieces: Sequence[Piece], states: Sequence[str], about_to: Wrote
) -> None:
    """Write `pieces` of tensors, and an empty object under each key of `states`, into `folder`.

    `about_to` is told of each piece before it is read. The directory is written last. Raises
    `OSError` where the disk refuses.
    """
    writer = FileSystemWriter(folder, single_file_per_rank=True, thread_count=1)
    planner = _Planner(pieces, states, about_to)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "torch.distributed is disabled"
            )  # one process is meant
            save({}, storage_writer=writer, planner=planner, no_dist=True)
    except CheckpointException as error:  # around what happened in each process
        raise error.failures[0][0] from error


def _item(index: MetadataIndex, piece: Piece) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(piece.start), torch.Size(piece.sizes))
    data = TensorWriteData(
        chunk=chunk,
        properties=TensorProperties(dtype=piece.part.dtype),
        size=torch.Size(piece.shape),
    )
    return WriteItem(index, WriteItemType.SHARD, tensor_data=data)
