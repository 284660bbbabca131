"""The folder of one training: what it was asked, its checkpoints, its losses, its result.

* `run.json`: the recipe, and a digest of the data: a training goes on only as what it was.
* `checkpoints/checkpoint-N/`: all that is needed to go on after step N.
* `history.json`: the loss of every step, and the evaluations.
* `adapter/` or `model/`: the result.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from gemma3vl_app.atomic_file import atomic_file
from gemma3vl_app.errors import TrainingError
from gemma3vl_app.finetune.recipe import Recipe

logger = logging.getLogger(__name__)

# What may differ when a training goes on: it changes no step.
FREE_FIELDS = frozenset(("save_every", "out", "gpus"))
KEPT_CHECKPOINTS = 2  # the best one and the last one
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class RunFolder:
    """The files of one training; nothing is written before `claim`."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.path = Path(recipe.out).expanduser()

    @property
    def result(self) -> Path:
        """Where the result will be: an adapter's folder, or a checkpoint's."""
        return self.path / ("model" if self._recipe.method == "sft" else "adapter")

    @property
    def checkpoints(self) -> Path:
        """The folder that holds the checkpoints."""
        return self.path / "checkpoints"

    def check_recipe(self) -> None:
        """Raise `TrainingError` where the folder holds the training of another recipe."""
        self._check(_settings(self._recipe))

    def claim(self, data_digest: str, processes: int, *, write: bool) -> None:
        """Take the folder for this training, or find that it is this training's already.

        Raises `TrainingError` where another training has it, and says what differs. Only the
        process that may `write` does.
        """
        mine = {**_settings(self._recipe), "data_digest": data_digest, "processes": processes}
        self._check(mine)
        if write and not self._claim.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            self._write(self._claim, mine)

    @property
    def claimed(self) -> bytes | None:
        """What is written there of the training that has the folder."""
        try:
            return self._claim.read_bytes()
        except OSError:
            return None

    def _check(self, mine: dict[str, Any]) -> None:
        if not self._claim.exists():
            return
        found = _read(self._claim)
        differing = sorted(key for key in mine if key not in found or found[key] != mine[key])
        if differing:
            raise TrainingError(
                f"{self.path.name!r} holds a training that differs in {', '.join(differing)}, and "
                "cannot go on as this one. Choose another folder (out=...), or remove it."
            )

    @property
    def _claim(self) -> Path:
        return self.path / "run.json"

    def last_checkpoint(self, processes: int) -> Path | None:
        """Return the newest checkpoint that is whole, if there is one.

        One is cut where the training ended while writing it: the trainer's state comes last.
        """
        numbered = [
            (int(found[1]), path)
            for path in self.checkpoints.glob("checkpoint-*")
            if (found := CHECKPOINT.fullmatch(path.name))
        ]
        for _, path in sorted(numbered, reverse=True):
            if _is_whole(path, processes):
                return path
        return None

    def remove_cut_checkpoints(self, processes: int) -> None:
        """Remove what a training that ended while writing a checkpoint left behind."""
        for path in self.checkpoints.glob("checkpoint-*"):
            if not _is_whole(path, processes):
                logger.warning("%s was not finished, and is removed", path.name)
                shutil.rmtree(path, ignore_errors=True)

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Write the loss of every step."""
        self._write(self.path / "history.json", history)

    def _write(self, file: Path, value: object) -> None:
        try:
            with atomic_file(file) as opened:
                opened.write(json.dumps(value, indent=1).encode())
        except OSError as error:
            raise TrainingError(
                f"{self.path.name!r} cannot be written: {error.strerror}. Choose another folder."
            ) from error


def _settings(recipe: Recipe) -> dict[str, Any]:
    fields = {k: v for k, v in dataclasses.asdict(recipe).items() if k not in FREE_FIELDS}
    settings: dict[str, Any] = json.loads(json.dumps(fields))
    return settings


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise TrainingError(f"{file.name} in {file.parent.name!r} is damaged: remove that folder.")
    return value


def _is_whole(checkpoint: Path, processes: int) -> bool:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    states = (
        [f"rng_state_{n}.pth" for n in range(processes)] if processes > 1 else ["rng_state.pth"]
    )
    return isinstance(state, dict) and all((checkpoint / each).is_file() for each in states)
