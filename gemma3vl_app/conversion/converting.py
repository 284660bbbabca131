"""`convert`: a checkpoint of any layout, written in another form into a folder of its own.

Everything that can go wrong is looked for before anything is written. The folder appears whole or
not at all; a conversion that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gemma3vl_app.conversion.adapter import Folded
from gemma3vl_app.conversion.check import check_same
from gemma3vl_app.conversion.formats import Format, check_wishes, format_named
from gemma3vl_app.conversion.layouts import Cast
from gemma3vl_app.conversion.opening import Detected, open_for_conversion
from gemma3vl_app.conversion.options import GgufType, Options, Precision
from gemma3vl_app.conversion.settings_files import small_files
from gemma3vl_app.conversion.work_folder import check_target, growing_folder
from gemma3vl_app.errors import ConversionError, LoadError
from gemma3vl_app.generation import Progress
from gemma3vl_app.loading.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from gemma3vl_app.loading.checkpoint import read_json
from gemma3vl_app.loading.checkpoint_files import write_json
from gemma3vl_app.loading.conversion import Stored
from gemma3vl_app.loading.sources import Source

RECORD = "conversion.json"  # in what was written: where it came from, and what was done
CONVERTER = 3  # raise when files change, so that half of an old conversion is not gone on with
PACKAGES = ("gemma3vl-app", "torch", "transformers", "bitsandbytes", "gguf")
DTYPES: Mapping[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """An opened checkpoint that can be written in other forms.

    `detected` says what its files turned out to be. `source.tensors` has every weight by its name
    in memory, read when asked for. `adapter` is the folder whose share is in them, if any.
    """

    source: Source
    detected: Detected
    adapter: Path | None

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        adapter: str | Path | None = None,
        revision: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Bridge:
        """Open what `load` takes, with an adapter folded in where one is given.

        Raises `LoadError` and `ConversionError` for what cannot be read or do not fit each other.
        """
        folder = None if adapter is None else Path(adapter).expanduser()
        report = progress or (lambda step: None)
        opened, detected = open_for_conversion(
            source, revision=revision, adapter=folder, report=report
        )
        message = f"{opened.checkpoint.name} is {detected}."
        report(Progress("detect", 1, 1, "models", message))
        return cls(source=opened, detected=detected, adapter=folder)

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return self.source.checkpoint.config

    def tensor(self, name: str) -> torch.Tensor:
        """Return one weight by its name in memory."""
        if name not in self.source.tensors:
            raise ConversionError(f"{self.source.checkpoint.name!r} has no {ascii(name)[:80]}.")
        return self.source.tensors[name].read()

    def write(
        self,
        target: str | Path,
        to: str = "hub",
        *,
        precision: Precision = "stored",
        shard_bytes: int | None = None,
        gguf_type: GgufType = "bf16",
        check: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> Path:
        """Write it into the folder `target` in the form `to`, and return the folder.

        `target` must be new or empty. `precision` rounds all weights to bf16 or fp32; `shard_bytes`
        is the largest size of a file, 2 GiB where nothing is said, of forms that have shards;
        `gguf_type` is how a GGUF file stores them. `check` reads everything back and compares it
        bit by bit before the folder takes its place. Raises `ConversionError` with what is wrong
        and what to do.
        """
        report = progress or (lambda step: None)
        format = format_named(to)
        options = Options(precision=precision, shard_bytes=shard_bytes, gguf_type=gguf_type)
        check_wishes(format, options, has_adapter=self.adapter is not None, check=check)
        source = _rounded(self.source, precision)
        path = Path(target).expanduser().absolute()
        writer = format.writer()
        check_target(path)
        needs_bytes = writer.needs_bytes(source, options)
        record = self._record(format, options, checked=check)
        with growing_folder(path, _recipe(self, format, options), needs_bytes) as folder:
            writer.write(source, folder, options, report)
            if check:
                _check(source, folder, report)
            write_json(folder / RECORD, record)
        report(Progress("convert", 1, 1, "folders", f"{path.name} is ready"))
        return path

    def _record(self, format: Format, options: Options, *, checked: bool) -> dict[str, object]:
        """Return what is good to know of the result, years later."""
        before = self.source.checkpoint.folder / RECORD
        name = self.source.checkpoint.name
        return {
            "source": name,
            "revision": self.source.revision,
            "detected": asdict(self.detected),
            "format": format.name,
            "precision": options.precision,
            "gguf_type": options.gguf_type if format.name == "gguf" else None,
            "adapter": None if self.adapter is None else _about_adapter(self.adapter),
            "checked": checked,
            "versions": {package: version(package) for package in PACKAGES},
            "source_conversion": _earlier_record(before, name),
        }


def convert(
    source: str | Path,
    target: str | Path,
    to: str = "hub",
    *,
    adapter: str | Path | None = None,
    precision: Precision = "stored",
    shard_bytes: int | None = None,
    gguf_type: GgufType = "bf16",
    check: bool = False,
    revision: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Write the checkpoint `source` into the folder `target` in the form `to`; return the folder.

    `source` is what `load` takes; its layout is found out from its files. `adapter` is folded in.
    Interrupted, the same call goes on where it stopped. See `Bridge.write` for the others. Raises
    `LoadError` for a source that cannot be read, `ConversionError` for one that cannot be written.
    """
    check_wishes(
        format_named(to),
        Options(precision=precision, shard_bytes=shard_bytes, gguf_type=gguf_type),
        has_adapter=adapter is not None,
        check=check,
    )
    check_target(Path(target).expanduser().absolute())  # before a download of many GiB
    bridge = Bridge.open(source, adapter=adapter, revision=revision, progress=progress)
    return bridge.write(
        target,
        to,
        precision=precision,
        shard_bytes=shard_bytes,
        gguf_type=gguf_type,
        check=check,
        progress=progress,
    )


def _earlier_record(path: Path, name: str) -> dict[str, Any] | None:
    """Return what a source's own record says; None where there is none that can be read."""
    try:
        return read_json(path, name) if path.is_file() else None
    except LoadError:
        return None


def _check(source: Source, folder: Path, report: Callable[[Progress], None]) -> None:
    try:
        check_same(source, folder, report)
    except ConversionError:
        shutil.rmtree(folder)  # its files look finished, and must not be gone on with
        raise


def _rounded(source: Source, precision: Precision) -> Source:
    """Return a source whose weights have another dtype; sums with an adapter are rounded once."""
    dtype = DTYPES.get(precision)
    if dtype is None:
        return source

    def rounded(weight: Stored) -> Stored:
        if isinstance(weight, Folded):
            return dataclasses.replace(weight, dtype=dtype)
        return weight if weight.dtype == dtype else Cast(weight, dtype)

    tensors = {name: rounded(weight) for name, weight in source.tensors.items()}
    return dataclasses.replace(source, tensors=tensors)


def _recipe(bridge: Bridge, format: Format, options: Options) -> dict[str, object]:
    """Return all that the written files depend on: the same recipe gives the same files."""
    return {
        "revision": bridge.source.revision,
        "fingerprint": bridge.source.fingerprint,
        "name": bridge.source.checkpoint.name,  # GGUF files are named after it
        "small_files": _digest(small_files(bridge.source.checkpoint)),
        "adapter": None if bridge.adapter is None else _about_adapter(bridge.adapter),
        "format": format.name,
        "options": asdict(options),
        "converter": CONVERTER,
        "versions": {package: version(package) for package in PACKAGES},
    }


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:  # a tokenizer has 33 MB: not all of it at once
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


def _about_adapter(folder: Path) -> dict[str, str]:
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"name": folder.resolve().name, "sha256": digest.hexdigest()}
