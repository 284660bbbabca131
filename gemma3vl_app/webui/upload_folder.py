"""The private folder of what browsers send: deleted when the process ends, or at the next start.

A process that is killed deletes nothing. So each holds a lock while it lives, and whoever starts
deletes the folders whose lock nobody holds any more. Knows nothing of gradio.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "gemma3vl-uploads-"
_LOCK, _FILES = "lock", "files"


def new_folder() -> Path:
    """Return a new folder that only this user can read, after deleting those of dead processes."""
    parent = Path(tempfile.gettempdir())
    for folder in parent.glob(f"{_PREFIX}*"):
        _delete_if_dead(folder)
    # It gets the name that others look for once it is locked: none is deleted while it is made.
    made = Path(tempfile.mkdtemp(prefix="gemma3vl-new-"))
    lock = FileLock(made / _LOCK)
    lock.acquire()
    folder = made.rename(parent / f"{_PREFIX}{made.name.removeprefix('gemma3vl-new-')}")
    atexit.register(_delete, folder, lock)  # which also holds the lock until then
    files = folder / _FILES
    files.mkdir(mode=0o700)
    return files


def _delete_if_dead(folder: Path) -> None:
    """Delete a folder whose process is gone; another user's, or one in use, is left alone."""
    try:
        if folder.is_symlink() or not (folder / _LOCK).is_file():
            return
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except (Timeout, OSError):
        return
    _delete(folder, lock)


def _delete(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder / _FILES, ignore_errors=True)
    lock.release()
    shutil.rmtree(folder, ignore_errors=True)
