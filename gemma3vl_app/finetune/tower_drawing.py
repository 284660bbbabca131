"""Draws a stage's pictures with several processes, while those there already are learned from.

Each process writes its pictures to a file, from which they are copied to where they are learned
from and the file deleted: pictures of a whole stage are many gigabytes, too much for pipes.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gemma3vl_app.finetune.tower_pictures import Drawn, Stage, draw_pictures

_PART = 500  # pictures that one process draws at a time


def several_processes(count: int | None = None) -> ProcessPoolExecutor:
    """Return processes to draw with: as many as there are cores, without `count`."""
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def draw_stage(stage: Stage, count: int, seed: int, *, patch: int, pooled: int) -> Drawn:
    """Draw a few pictures of a stage in this process.

    A patch has `patch` pixels a side, a cell `pooled` patches.
    """
    sides = {"patches_a_side": stage.side // patch, "cells_a_side": stage.side // (patch * pooled)}
    return Drawn.of(draw_pictures(stage, count, f"{seed}/0", **sides))


class Drawing:
    """A stage's pictures, on `device` as far as they are drawn; the same ones every time.

    `executor` draws them; it can be drawing for other stages too.
    """

    def __init__(
        self, stage: Stage, *, patch: int, pooled: int, device: torch.device, executor: Executor
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gemma3vl-drawing-")
        sides = stage.side // patch, stage.side // (patch * pooled)
        self._parts = [
            executor.submit(
                _draw_part,
                *(stage, min(_PART, stage.pictures - first), f"{stage.seed}/{first}", *sides),
                Path(self._folder.name) / f"{first}.safetensors",
            )
            for first in range(0, stage.pictures, _PART)
        ]
        self._count, self._device = stage.pictures, device
        self._taken = self._there = 0  # parts, pictures
        self._all: Drawn | None = None

    def first(self, count: int) -> Drawn:
        """Return the first `count` pictures; waits for what is not drawn yet."""
        while self._there < count:
            file = self._parts[self._taken].result()
            self._take(Drawn(**load_file(file)))
            file.unlink()
            self._taken += 1
        assert self._all is not None
        return self._all[:count]

    def _take(self, part: Drawn) -> None:
        rows = slice(self._there, self._there + len(part.pixels))
        if self._all is None:
            shapes = [getattr(part, field.name) for field in fields(Drawn)]
            self._all = Drawn(
                *(
                    torch.empty(self._count, *each.shape[1:], dtype=each.dtype, device=self._device)
                    for each in shapes
                )
            )
        for field in fields(Drawn):
            getattr(self._all, field.name)[rows] = getattr(part, field.name)
        self._there = rows.stop

    def close(self) -> None:
        """Give up what is not drawn yet, and delete what was not taken."""
        for part in self._parts:
            part.cancel()
        for part in self._parts[self._taken :]:
            if not part.cancelled():
                part.exception()  # what is being drawn is waited for
        self._folder.cleanup()


def _draw_part(
    stage: Stage, count: int, seed: str, patches_a_side: int, cells_a_side: int, file: Path
) -> Path:
    sides = {"patches_a_side": patches_a_side, "cells_a_side": cells_a_side}
    drawn = Drawn.of(draw_pictures(stage, count, seed, **sides))
    save_file({field.name: getattr(drawn, field.name) for field in fields(Drawn)}, file)
    return file
