"""Folders that are costly to make: built aside once, moved into place whole, checked on use.

Knows nothing of models. The cache lies in `$GEMMA3VL_CACHE`, else `~/.cache/gemma3vl`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from gemma3vl_app.errors import LoadError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "GEMMA3VL_CACHE"
MANIFEST = "manifest.json"


def cache_root() -> Path:
    """Return the folder that holds the cache; it need not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "gemma3vl"


def cached_folder(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache; `build(folder)` fills it where absent or damaged.

    Safe with several processes at once: one builds, the others wait. A build that fails or is
    killed leaves nothing that a later call would take for finished. Raises `LoadError` where the
    disk refuses.
    """
    root = cache_root()
    folder = root / name
    if is_intact(folder):  # the usual case; needs no lock and no right to write
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            if not is_intact(folder):
                _build_into_place(folder, build)
    except OSError as error:
        raise LoadError(
            f"The model cache cannot be written ({error.strerror or type(error).__name__}). "
            f"Free some disk space, or set {CACHE_VARIABLE} to a folder that can be written."
        ) from error
    return folder


def is_intact(folder: Path) -> bool:
    """Whether every file of the folder's manifest is there with its size and SHA-256."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        # Sizes first: they are free, and settle most damage.
        return all(
            (folder / name).stat().st_size == entry["bytes"] for name, entry in manifest.items()
        ) and all(_sha256(folder / name) == entry["sha256"] for name, entry in manifest.items())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        logger.warning("The cached folder %s cannot be checked; it is made anew.", folder.name)
        return False


def _build_into_place(folder: Path, build: Callable[[Path], None]) -> None:
    """Build beside `folder`, then rename; the caller holds the lock."""
    for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    if folder.exists():
        logger.warning("The cached folder %s is damaged; it is made anew.", folder.name)
        shutil.rmtree(folder)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(work)
        _write_manifest(work)
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _write_manifest(folder: Path) -> None:
    manifest = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
