"""Folders that are costly to make: built aside once, moved into place whole, checked on use.

Knows nothing of models. The cache lies in `$GEMMA3VL_CACHE`, else `~/.cache/gemma3vl`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from gemma3vl_app.errors import LoadError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "GEMMA3VL_CACHE"
MANIFEST = "manifest.json"
CONVERSATIONS = "conversations"  # the folder of the engine's disk cache, which looks after it


def cache_root() -> Path:
    """Return the folder that holds the cache; it need not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "gemma3vl"


def cached_folder(
    name: str, build: Callable[[Path], None], *, hashed: bool = True, needs_bytes: int = 0
) -> Path:
    """Return the folder `name` of the cache; `build(folder)` fills it where absent or damaged.

    Files are checked by size and, if `hashed`, by SHA-256; folders of many GiB are better left
    unhashed. `needs_bytes` is asked of the disk before building. Safe with several processes at
    once: one builds, the others wait. A build that fails or is killed leaves nothing that a later
    call would take for finished. Raises `LoadError` where the disk refuses.
    """
    root = cache_root()
    folder = root / name
    if is_intact(folder, hashed=hashed):  # the usual case; needs no lock and no right to write
        _note_use(folder)
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            if not is_intact(folder, hashed=hashed):
                _check_room(root, needs_bytes)
                _build_into_place(folder, build, hashed=hashed)
    except (OSError, SafetensorError) as error:  # what safetensors says of a full disk
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise LoadError(
            f"The model cache cannot be written ({reason}). "
            f"Free some disk space, or set {CACHE_VARIABLE} to a folder that can be written."
        ) from error
    return folder


def is_intact(folder: Path, *, hashed: bool = True) -> bool:
    """Whether every file of the folder's manifest is there with its size (and SHA-256)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        # Sizes first: they are free, and settle most damage.
        return all(
            (folder / name).stat().st_size == entry["bytes"] for name, entry in manifest.items()
        ) and (
            not hashed
            or all(_sha256(folder / name) == entry["sha256"] for name, entry in manifest.items())
        )
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        logger.warning("The cached folder %s cannot be checked; it is made anew.", folder.name)
        return False


def _note_use(folder: Path) -> None:
    """Remember when the folder was last of use, for whoever cleans up."""
    with contextlib.suppress(OSError):  # a cache that this user may only read
        os.utime(folder)


def _check_room(root: Path, needs_bytes: int) -> None:
    free = shutil.disk_usage(root).free
    if needs_bytes > free:
        raise LoadError(
            f"The model cache needs {needs_bytes / 2**30:.1f} GiB of disk space, and "
            f"{free / 2**30:.1f} GiB are free. Free some (`gemma3vl cache clean`), or set "
            f"{CACHE_VARIABLE} to a folder on a larger disk."
        )


def _build_into_place(folder: Path, build: Callable[[Path], None], *, hashed: bool) -> None:
    """Build beside `folder`, then rename; the caller holds the lock."""
    for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    if folder.exists():
        logger.warning("The cached folder %s is damaged; it is made anew.", folder.name)
        shutil.rmtree(folder)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(work)
        _write_manifest(work, hashed=hashed)
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _write_manifest(folder: Path, *, hashed: bool) -> None:
    manifest = {
        path.name: {"bytes": path.stat().st_size} | ({"sha256": _sha256(path)} if hashed else {})
        for path in sorted(folder.iterdir())
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class CachedFolder:
    """A finished folder of the cache; `used` is when it was last asked for, in epoch seconds."""

    name: str
    bytes: int
    used: float


def cached_folders() -> list[CachedFolder]:
    """Return what the cache holds, most recently used first; kept conversations count as one."""
    root = cache_root()
    folders = [path.parent for path in root.glob(f"*/{MANIFEST}")] if root.is_dir() else []
    if (root / CONVERSATIONS).is_dir():
        folders.append(root / CONVERSATIONS)
    found = [
        CachedFolder(
            folder.name,
            _bytes_in(folder),
            folder.stat().st_mtime,
        )
        for folder in folders
    ]
    return sorted(found, key=lambda folder: folder.used, reverse=True)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # conversations come and go meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def remove_cached(name: str) -> int:
    """Delete one folder of the cache and return its bytes; raises `LoadError` if it is not there.

    A process that has it mapped keeps its data until it ends (but on Windows, where the deletion
    is refused).
    """
    found = next((folder for folder in cached_folders() if folder.name == name), None)
    if found is None:
        raise LoadError(f"The cache holds no {name!r}. `gemma3vl cache list` shows what it holds.")
    root = cache_root()
    try:
        with FileLock(root / f".{name}.lock"):
            # First: half a folder must not look finished. Conversations have none.
            (root / name / MANIFEST).unlink(missing_ok=name == CONVERSATIONS)
            shutil.rmtree(root / name)
    except OSError as error:
        raise LoadError(
            f"{name!r} could not be deleted ({error.strerror or type(error).__name__}). "
            "Is it in use? Close other programs of this kind and try again."
        ) from error
    return found.bytes
