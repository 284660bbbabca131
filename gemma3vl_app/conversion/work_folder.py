"""The folder beside the target in which a conversion grows, until it takes the target's place.

It is kept when a conversion stops half-way, with a note beside it of what it is: the same
conversion goes on in it, another one begins anew.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from gemma3vl_app.errors import ConversionError

SMALL_FILES_BYTES = 100 << 20  # tokenizer and configs, generously


def work_folder_of(target: Path) -> Path:
    """Return where a conversion to `target` grows: on the same disk, so that it can be renamed."""
    return target.with_name(f".{target.name}.unfinished")


def note_of(target: Path) -> Path:
    """Return where the recipe of what grows stands, until it is finished."""
    return target.with_name(f".{target.name}.unfinished.json")


def check_target(target: Path) -> None:
    """Raise `ConversionError` unless `target` can become a new folder."""
    try:
        target.lstat()
        is_empty = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or "it is no name of a folder"
        raise ConversionError(
            f"{ascii(target.name)[:80]} cannot be written: {why}. Choose another folder."
        ) from error
    if target.is_mount():
        raise ConversionError(
            f"{target.name!r} is where a disk is mounted. Name a folder inside it."
        )
    if not is_empty:
        raise ConversionError(
            f"{target.name!r} is there already, and nothing is overwritten. "
            "Choose another folder, or move it away."
        )


def check_room(target: Path, needs_bytes: int) -> None:
    """Raise `ConversionError` where the disk of `target` has no room for what is still missing."""
    work = work_folder_of(target)
    there = sum(each.stat().st_size for each in work.rglob("*") if each.is_file())
    missing = needs_bytes + SMALL_FILES_BYTES - there
    here = next(each for each in work.parents if each.exists())
    free = shutil.disk_usage(here).free
    if missing > free:
        raise ConversionError(
            f"{target.name!r} needs {missing / 2**30:.1f} GiB of disk space, and "
            f"{free / 2**30:.1f} GiB are free. Free some, or choose another disk."
        )


@contextlib.contextmanager
def growing_folder(target: Path, recipe: Mapping[str, object], needs_bytes: int) -> Iterator[Path]:
    """Give the folder in which `recipe` grows, and make it `target` when the block ends well.

    What a block that fails, or is killed, has written stays for the same recipe to go on with.
    Raises `ConversionError` where the disk refuses or has no room for `needs_bytes`, or another
    process writes there now.
    """
    work = work_folder_of(target)
    try:
        check_room(target, needs_bytes)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(work):
            _prepare(work, note_of(target), recipe)
            try:
                yield work
                if target.is_dir():
                    target.rmdir()  # it is empty
                work.rename(target)
            finally:
                if not work.exists():  # finished, or given up
                    with contextlib.suppress(OSError):  # a note alone does no harm
                        note_of(target).unlink()
    except OSError as error:
        why = error.strerror or type(error).__name__
        if error.filename and not _is_ours(str(error.filename), target):
            raise ConversionError(
                f"{Path(error.filename).name!r} of the source cannot be read: {why}. Bring it "
                "back; then the same command goes on where it stopped."
            ) from error
        raise ConversionError(
            f"{target.name!r} cannot be written: {why}. Free some disk space or choose another "
            "folder; on the same disk, the same command goes on where it stopped."
        ) from error


def _is_ours(file: str, target: Path) -> bool:
    """Whether a file is the target's, or on the way to it, and not the source's."""
    ours = (str(target), str(work_folder_of(target)))
    return file.startswith(ours) or Path(file) in target.parents


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    lock = FileLock(f"{work}.lock", timeout=0)
    try:
        with lock:
            try:
                yield
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout as error:
        raise ConversionError(
            f"Another process is writing {work.name[1:].removesuffix('.unfinished')!r} now. "
            "Wait for it, or choose another folder."
        ) from error


def _prepare(work: Path, note: Path, recipe: Mapping[str, object]) -> None:
    """Keep what an earlier run of the same recipe has left; remove what another one has."""
    wanted = json.dumps(recipe, sort_keys=True, indent=2)
    if work.exists():
        if _text(note) == wanted:
            return  # a disk that is full would leave an empty note, and so lose what is finished
        shutil.rmtree(work)
    aside = note.with_name(f"{note.name}.new")
    aside.write_text(wanted, encoding="utf-8")
    aside.rename(note)
    work.mkdir()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
