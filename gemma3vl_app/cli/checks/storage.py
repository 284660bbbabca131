"""The caches and the disks they lie on: whether they can be written, what they hold, room."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma3vl_app.cli.checks.check import Check, gib, shown_path

SECTION = "Caches and disk"
DOWNLOAD_4B_BYTES = 10 << 30  # 8.6 GiB, and some room for the system
FULL_BYTES = 1 << 30  # not even the demo can be converted
ABANDONED_SEC = 3600.0  # nobody has written into it for so long


@dataclass(frozen=True)
class Leftover:
    """A folder or file that an interrupted process left, `age_sec` after its last change."""

    path: Path
    bytes: int
    age_sec: float


# --- what is there ---


def why_not_writable(folder: Path) -> str:
    """Return why nothing can be written into `folder`, existing or to be made; empty: it can be."""
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not nearest.is_dir():
        return "a file lies where the folder should be"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return "you have no right to write there"
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return ""
    except OSError as error:
        return error.strerror or type(error).__name__


def find_leftovers(root: Path) -> list[Leftover]:
    """Return the unfinished conversions in our cache; one that goes on right now is among them."""
    return [_measured(path) for path in sorted(root.glob(".*-*")) if path.is_dir()]


def find_incomplete(hub_cache: Path) -> list[Leftover]:
    """Return the unfinished downloads in the hub's cache."""
    return [_measured(path) for path in sorted(hub_cache.glob("*--*/blobs/*.incomplete"))]


def _measured(path: Path) -> Leftover:
    size, changed = 0, 0.0
    for each in (path, *path.rglob("*")):
        try:
            found = each.stat()
        except OSError:  # it went meanwhile
            continue
        size += found.st_size if each.is_file() else 0
        changed = max(changed, found.st_mtime)
    return Leftover(path, size, time.time() - changed)


# --- what to say of it ---


def own_cache(
    root: Path, sizes_bytes: Sequence[int], leftovers: Sequence[Leftover], why_not: str
) -> list[Check]:
    """Look at our cache: `sizes_bytes` of its folders, leftovers, and why it cannot be written."""
    place = shown_path(root)
    if why_not:
        message = f"{place} cannot be written: {why_not}."
        next_step = "export GEMMA3VL_CACHE=FOLDER"
        return [Check(SECTION, "our cache", "broken", message, next_step)]
    held = f"{_count(len(sizes_bytes), 'model')} converted here, {gib(sum(sizes_bytes))}"
    checks = [Check(SECTION, "our cache", "good", f"{place}: {held if sizes_bytes else 'empty'}")]
    old = [each for each in leftovers if each.age_sec > ABANDONED_SEC]
    if old:
        size = gib(sum(each.bytes for each in old))
        message = f"{_count(len(old), 'unfinished conversion')}, {size}, left by ended programs"
        paths = " ".join(f'"{each.path}"' for each in old)
        checks.append(Check(SECTION, "leftovers", "warning", message, f"rm -r {paths}"))
    return checks


def hub_cache(
    root: Path, sizes_bytes: Sequence[int], incomplete: Sequence[Leftover], why_not: str
) -> list[Check]:
    """Look at the hub's cache: `sizes_bytes` of its Gemma 3 models, and unfinished downloads."""
    place = shown_path(root)
    if why_not:
        message = f"{place} cannot be written: {why_not}. Nothing can be downloaded."
        return [Check(SECTION, "hub cache", "broken", message, "export HF_HOME=FOLDER")]
    held = f"{_count(len(sizes_bytes), 'Gemma 3 model')}, {gib(sum(sizes_bytes))}"
    held = held if sizes_bytes else "no Gemma 3 models yet"
    checks = [Check(SECTION, "hub cache", "good", f"{place}: {held}")]
    by_repo: dict[str, int] = {}
    for each in incomplete:
        folder = each.path.parents[1].name  # models--owner--name
        name = folder.removeprefix("models--").replace("--", "/")
        by_repo[name] = by_repo.get(name, 0) + each.bytes
    for name, size in by_repo.items():
        message = f"{name} is not complete: {gib(size)} of a file have come. Loading it goes on."
        next_step = f'gemma3vl ask {name} "Hello"'
        checks.append(Check(SECTION, "download", "warning", message, next_step))
    return checks


def disk(folders: Sequence[Path], free_bytes: int) -> Check:
    """Look at the free room on the disk that holds `folders`."""
    message = f"{gib(free_bytes)} are free for {' and '.join(shown_path(f) for f in folders)}"
    if free_bytes >= DOWNLOAD_4B_BYTES:
        return Check(SECTION, "disk", "good", message)
    if free_bytes >= FULL_BYTES:
        message += "; 4B's download takes 8.6 GiB"
        return Check(SECTION, "disk", "warning", message, "gemma3vl cache list")
    message += ": too little to convert or download anything"
    return Check(SECTION, "disk", "broken", message, "gemma3vl cache list")


def by_disk(folders: Sequence[Path]) -> list[tuple[list[Path], Path]]:
    """Return the folders that share a disk, each group with a path that exists on it."""
    groups: dict[int, tuple[list[Path], Path]] = {}
    for folder in folders:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        groups.setdefault(existing.stat().st_dev, ([], existing))[0].append(folder)
    return list(groups.values())


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"
