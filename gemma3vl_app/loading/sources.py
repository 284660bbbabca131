"""Where models come from: a name, the hub, a folder, a GGUF file; each becomes an open `Source`.

Nothing large is read here: a source knows its small files, and where its tensors lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma3vl_app import catalog
from gemma3vl_app.generation import Report
from gemma3vl_app.loading.base_270m import base_270m_folder
from gemma3vl_app.loading.checkpoint import (
    Checkpoint,
    open_checkpoint,
    stored_tensors,
    weight_files,
)
from gemma3vl_app.loading.conversion import HeldTensor, Stored
from gemma3vl_app.loading.demo import DATA, open_demo
from gemma3vl_app.loading.gguf_folder import gguf_folder, gguf_notes
from gemma3vl_app.loading.gguf_model import is_gguf
from gemma3vl_app.loading.hub import hub_folder, hub_revision

SAMPLE_BYTES, SAMPLE_STEP_BYTES = 4 << 10, 4 << 20
SAMPLES = 200  # at least, of a file that is not tiny


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened model: its small files, its tensors by in-memory name, and what it knows.

    `fingerprint` changes whenever its weights do; converted weights are cached by it. `revision`
    names the same weights on any machine: the hub's commit, or "files:" and a digest of samples.
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, Stored]
    knows: str
    fingerprint: str
    revision: str

    @property
    def weight_bytes(self) -> int:
        """Size of all its tensors."""
        return sum(each.nbytes for each in self.tensors.values())


def open_source(source: str | Path, *, revision: str | None, report: Report) -> Source:
    """Find and open a model; raises `LoadError` with what is wrong and what to do.

    `source` is a name of the catalog, a hub id ("owner/name"), a folder or a GGUF file; `revision`
    is a branch, tag or commit of the hub.
    """
    catalog.check_source(source)
    if source == catalog.DEMO.name:
        base = base_270m_folder(report)  # once: each call checks the whole folder
        checkpoint, tensors = open_demo(base)
        held = {key: HeldTensor(tensor) for key, tensor in tensors.items()}
        return Source(
            checkpoint=checkpoint,
            tensors=held,
            knows=catalog.DEMO.knows,
            fingerprint=f"{base.name} {_file_stamps(sorted(DATA.iterdir()))}",
            revision=_samples([*weight_files(open_checkpoint(base)), *_demo_files()]),
        )
    if source == catalog.BASE_270M.name:
        return _from_folder(base_270m_folder(report), str(source), catalog.BASE_270M.knows)
    if is_gguf(source):
        path = Path(source).expanduser()
        folder = gguf_folder(path, progress=report)
        return _from_folder(folder, path.stem, notes=gguf_notes(folder))
    if Path(source).expanduser().is_dir():
        return _from_folder(Path(source).expanduser(), None)
    entry = catalog.find(str(source))
    repo = entry.repo if entry is not None else str(source)
    folder = hub_folder(repo, revision=revision, progress=report)
    return _from_folder(folder, entry.name if entry else repo, entry.knows if entry else "")


def _from_folder(
    folder: Path, name: str | None, knows: str = "", notes: tuple[str, ...] = ()
) -> Source:
    checkpoint = open_checkpoint(folder, name)
    pictures = "takes pictures" if "vision_config" in checkpoint.config else "takes no pictures"
    own = f"A Gemma 3 checkpoint, {checkpoint.name!r}; it {pictures}."
    commit = hub_revision(folder)
    return Source(
        checkpoint=checkpoint,
        tensors=stored_tensors(checkpoint),
        knows=" ".join((knows or own, *notes)),
        fingerprint=commit or _file_stamps(weight_files(checkpoint)),
        revision=commit or _samples([folder / "config.json", *weight_files(checkpoint)]),
    )


def check_folder(source: str | Path) -> None:
    """Raise `LoadError` where `source` is a folder that lacks what loading needs.

    Only small files are read: for what takes minutes before it comes to this source.
    """
    folder = Path(source).expanduser()
    if source not in (catalog.DEMO.name, catalog.BASE_270M.name) and folder.is_dir():
        weight_files(open_checkpoint(folder))


def _demo_files() -> list[Path]:
    return sorted(file for file in DATA.iterdir() if file.suffix in (".json", ".safetensors"))


def _file_stamps(files: list[Path]) -> str:
    """Return a hash of names, sizes and times: files of many GiB are not read to be recognised."""
    stamps = hashlib.sha256()
    for file in files:
        stat = file.stat()
        stamps.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return stamps.hexdigest()


def _samples(files: list[Path]) -> str:
    """Return a digest of places all over each file, whatever its name and time.

    Unlike time stamps it is the same on another machine; unlike a full hash it takes milliseconds.
    The places are close enough for several of them to lie in each matrix of a large model.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "big"))
        step = max(SAMPLE_BYTES, min(size // SAMPLES, SAMPLE_STEP_BYTES))
        with file.open("rb") as stream:
            for start in (*range(0, size, step), max(0, size - SAMPLE_BYTES)):
                stream.seek(start)
                digest.update(stream.read(SAMPLE_BYTES))
    return f"files:{digest.hexdigest()[:16]}"
