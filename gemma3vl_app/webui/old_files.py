"""Files that the page made and nobody has asked for in a day: exports, and pictures to be shown."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

KEPT_SEC = 24 * 3600.0
LOOKED_AT_EVERY_SEC = 3600.0
_log = logging.getLogger(__name__)


class OldFiles:
    """Delete what was not used for `kept_sec` in folders of this server alone.

    Uploads are not among them: gradio deletes those itself (`page.UPLOADS_KEPT_SEC`).
    """

    def __init__(self, folders: Sequence[Path], *, kept_sec: float = KEPT_SEC) -> None:
        self._folders = tuple(folders)
        self._kept_sec = kept_sec
        self._lock = threading.Lock()
        self._next_sec = 0.0  # on the monotonic clock

    def sweep(self) -> None:
        """Look through the folders, unless somebody has within the hour; safe from any thread."""
        with self._lock:
            if time.monotonic() < self._next_sec:
                return
            self._next_sec = time.monotonic() + LOOKED_AT_EVERY_SEC
        oldest = time.time() - self._kept_sec
        for folder in self._folders:
            # The deepest first: a folder is empty once its files are gone.
            for path in sorted(folder.rglob("*"), reverse=True):
                self._delete(path, oldest)

    def _delete(self, path: Path, oldest: float) -> None:
        try:
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.stat().st_mtime < oldest:
                path.unlink()
        except OSError as error:  # somebody was quicker, or writes into it just now
            _log.info("%s was not deleted: %s", path.name, error.strerror)
