"""The journal of a batch: one line of JSON for each picture, on the disk before more are asked.

A process that is killed at any moment, or a power cut, costs only what was not written yet: lines
are only ever appended, and a torn end is dropped by the next run. Beside the journal lie the
settings that its answers were asked with, so that no file ever mixes two.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from filelock import FileLock, Timeout

from gemma3vl_app.atomic_file import atomic_file
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.folders.items import BatchItem, from_line, to_line

LARGEST_GROUP = 64  # lines written at once: as many may be torn when the power goes
VERSION_KEY, VERSION = "gemma3vl_batch", 1
_LONGEST_SHOWN = 40  # characters of a setting in a message


class Earlier(NamedTuple):
    """What is known without reading an answer of an earlier run again."""

    failed: bool
    size_bytes: int | None


class Journal:
    """Lines for `settings` in the file `path`; nobody else may write there until it is closed.

    Raises `ConversationError` for a file that this did not write, for one that was written with
    other settings, where another process is at it, and where the disk says no.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Take the file for this process; nothing is changed before `begin`."""
        self.path = path
        self.earlier: dict[str, Earlier] = {}
        self._settings = {VERSION_KEY: VERSION, **settings}
        self._settings_file = path.with_name(f"{path.name}.settings.json")
        self._file: int | None = None
        self._lock = _lock(path)
        self.is_ours = False  # whether a run of this batch began here, answers or not
        try:
            self.found_settings = self._read_settings()
        except BaseException:
            _unlock(self._lock)
            raise

    @property
    def exists(self) -> bool:
        """Whether there are lines of an earlier run."""
        return self.found_settings is not None

    def discard(self) -> None:
        """Forget what earlier runs wrote."""
        with telling(self.path):
            self.path.unlink(missing_ok=True)
        self.found_settings = None

    def check(self, known: Mapping[str, Any]) -> None:
        """Raise `ConversationError` where earlier lines were asked for with other settings.

        `known` are some of the settings; of those that are objects, some keys may be left out.
        """
        found = self.found_settings or known
        different = {key for key, value in known.items() if not _agrees(found.get(key), value)}
        if different:
            self._refuse_other_settings(different)

    def begin(self) -> None:
        """Go on where earlier runs ended; `earlier` then names what they did."""
        delete_half_written(self.path)
        delete_half_written(self._settings_file)
        with telling(self.path):
            if self.found_settings is None:
                with atomic_file(self._settings_file) as file:
                    file.write(json.dumps(self._settings, indent=2).encode() + b"\n")
            elif self.found_settings != self._settings:
                self._refuse_other_settings({**self.found_settings, **self._settings})
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._drop_torn_end(self._file)

    def items(self) -> Iterator[BatchItem]:
        """Read the lines again, up to one that is torn."""
        with telling(self.path), self.path.open("rb") as file:
            for line in file:
                item = _read_line(line)
                if item is None:
                    return
                yield item

    def append(self, items: Sequence[BatchItem], *, with_schema: bool) -> None:
        """Write lines, all of them or none, and come back when they are on the disk."""
        assert self._file is not None
        data = b"".join(_encoded(to_line(item, with_schema=with_schema)) for item in items)
        end = os.fstat(self._file).st_size
        with telling(self.path):
            try:
                _write_all(self._file, data)
                os.fsync(self._file)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, end)
                raise

    def forget(self, names: Collection[str]) -> None:
        """Take lines out: those pictures will be asked about again."""
        self._let_go()  # Windows replaces no file that is open
        with telling(self.path):
            with self.path.open("rb") as old:
                kept = [line for line in old if json.loads(line)["file"] not in names]
            with atomic_file(self.path) as new:
                new.writelines(kept)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND)
        for name in names:
            del self.earlier[name]

    def close(self) -> None:
        """Let others write; safe to call twice."""
        self._let_go()
        _unlock(self._lock)

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    # --- what earlier runs left ---

    def _read_settings(self) -> dict[str, Any] | None:
        """Return the settings of the lines that are there, None where there are none.

        Raises `ConversationError` where either file is not ours.
        """
        with telling(self.path):
            is_empty = not self.path.exists() or not self.path.stat().st_size
            if not self._settings_file.exists():
                if is_empty:
                    return None
                raise ConversationError(
                    f"'{self.path.name}' exists and is not from an earlier run of this batch, so "
                    "it is left alone. Choose another output, or move that file away."
                )
            try:
                found = json.loads(self._settings_file.read_bytes())
            except (ValueError, RecursionError):
                found = None
        if not isinstance(found, dict) or VERSION_KEY not in found:
            raise ConversationError(
                f"'{self._settings_file.name}' is not from an earlier run of this batch, so it is "
                "left alone. Choose another output, or move that file away."
            )
        self.is_ours = True
        return None if is_empty else found

    def _refuse_other_settings(self, keys: Iterable[str]) -> NoReturn:
        found = self.found_settings or {}
        different = [
            _difference(key, found.get(key), self._settings.get(key))
            for key in {**self._settings, **found}
            if key in keys and found.get(key) != self._settings.get(key)
        ]
        raise ConversationError(
            f"'{self.path.name}' was begun with other settings: {'; '.join(different)}. "
            "Use the same, or choose another output, or begin anew with restart=True."
        )

    def _drop_torn_end(self, file: int) -> None:
        """Read what is there, and cut off what a crash left at the end."""
        end, damaged, lines = 0, 0, 0
        with self.path.open("rb") as old:
            for lines, line in enumerate(old, start=1):
                item = None if damaged else _read_line(line)
                if item is None:
                    damaged = damaged or lines
                    continue
                end += len(line)
                self.earlier[item.file] = Earlier(item.failed, item.size_bytes)
        if not damaged:
            return
        if lines - damaged >= LARGEST_GROUP:
            raise ConversationError(
                f"Line {damaged} of '{self.path.name}' is damaged, and not by a crash. "
                "Take it out, choose another output, or begin anew with restart=True."
            )
        os.ftruncate(file, end)
        os.fsync(file)


def _read_line(line: bytes) -> BatchItem | None:
    """Return a line's item, None where the line is torn or none of ours."""
    try:
        item = from_line(json.loads(line)) if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return item if item is not None and isinstance(item.file, str) else None


def _encoded(line: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file's name that is no valid text
        return json.dumps(line).encode() + b"\n"


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _agrees(found: Any, known: Any) -> bool:
    if isinstance(found, dict) and isinstance(known, dict):
        return all(_agrees(found.get(key), value) for key, value in known.items())
    return bool(found == known)


def _difference(key: str, before: Any, now: Any) -> str:
    """Return a setting's name, with both values where they are short."""
    shown = [json.dumps(value, ensure_ascii=False) for value in (before, now)]
    if max(map(len, shown)) > _LONGEST_SHOWN:
        return key
    return f"{key} (was {shown[0]}, now {shown[1]})"


def delete_half_written(path: Path) -> None:
    """Delete what `atomic_file` left beside `path` when its process was killed."""
    for leftover in path.parent.glob(f".{glob.escape(path.name[:64])}.{'[0-9a-f]' * 8}"):
        with telling(path):
            leftover.unlink()


def _lock(path: Path) -> FileLock:
    """Take `path` for this process, by a hidden file beside it."""
    lock = FileLock(path.with_name(f".{path.name.lstrip('.')}.lock"), timeout=0)
    try:
        with telling(path):
            lock.acquire()
    except Timeout as error:
        raise ConversationError(
            f"'{path.name}' is being written by another batch. Wait for it, or choose another "
            "output."
        ) from error
    return lock


def _unlock(lock: FileLock) -> None:
    """Let others have it, and leave no file behind.

    The file goes while the lock is held, so that it is no other process's; whoever has opened it
    meanwhile sees that it is gone (filelock looks).
    """
    if lock.is_locked:
        with suppress(OSError):  # Windows deletes no open file
            os.unlink(lock.lock_file)
    lock.release()


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turn what the system says about a file into a `ConversationError`."""
    try:
        yield
    except Timeout:  # of the lock; an OSError, but no failure of the disk
        raise
    except OSError as error:
        raise ConversationError(
            f"'{path.name}' cannot be written ({error.strerror or type(error).__name__}). "
            "What was done before is kept; run it again when that is mended."
        ) from error
