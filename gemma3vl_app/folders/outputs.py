"""Where answers go: a file of JSON lines, a CSV table, or a small file beside each picture.

Each is kept in a `Journal` first; what is made of it can always be made again.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gemma3vl_app.atomic_file import atomic_file
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.folders.find import FoundPictures
from gemma3vl_app.folders.items import BatchItem
from gemma3vl_app.folders.journal import Earlier, Journal, delete_half_written, telling

logger = logging.getLogger(__name__)

SIDECARS = "sidecars"
SIDECAR_JOURNAL = ".gemma3vl-batch.jsonl"
_TABLE_JOURNAL = "{}.journal.jsonl"  # of the table's name
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")  # what spreadsheets may run


def check_output(out: str | Path) -> None:
    """Raise `ConversationError` unless `out` is "sidecars" or ends in .jsonl or .csv."""
    path = Path(out)
    if str(out) == SIDECARS:
        return
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise ConversationError(
            f"The output '{path.name}' is of no kind that can be written. "
            "Give a name that ends in .jsonl or .csv, or say 'sidecars'."
        )
    if path.is_dir():
        raise ConversationError(f"The output '{path.name}' is a folder. Give a file's name in it.")
    if not path.absolute().parent.is_dir():  # named as it was given: that is what to look at
        raise ConversationError(
            f"The folder '{path.parent}' for the output '{path.name}' does not exist. "
            "Make it first."
        )


def check_earlier(
    out: str | Path, found: FoundPictures, known: Mapping[str, Any], *, restart: bool = False
) -> None:
    """Raise `ConversationError` for what `open_output` is going to refuse; change nothing.

    `known` are the settings that are known before there is a model.
    """
    check_output(out)
    path, settings = _journal_path(out, found), _with_folder(out, found, known)
    with closing(Journal(path, settings)) as journal:
        if Path(out).suffix.lower() == ".csv":
            _check_table(Path(out), journal)
        if not restart:
            journal.check(settings)


def open_output(
    out: str | Path | None,
    found: FoundPictures,
    settings: Mapping[str, Any],
    *,
    restart: bool = False,
) -> Output:
    """Return the output that `out` names, ready to go on; close it, as `with` does.

    Raises `ConversationError` for what `check_output` and `Journal` refuse.
    """
    if out is None:
        return Output()
    check_output(out)
    settings = _with_folder(out, found, settings)
    if str(out) == SIDECARS:
        return Sidecars(found, settings, restart=restart)
    path = Path(out).absolute()
    kind = Table if path.suffix.lower() == ".csv" else Lines
    return kind(path, settings, restart=restart, journal_path=_journal_path(out, found))


def _journal_path(out: str | Path, found: FoundPictures) -> Path:
    if str(out) == SIDECARS:
        return found.base / SIDECAR_JOURNAL
    path = Path(out).absolute()
    is_table = path.suffix.lower() == ".csv"
    return path.with_name(_TABLE_JOURNAL.format(path.name)) if is_table else path


def _with_folder(
    out: str | Path, found: FoundPictures, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Add the pictures' folder, as it is seen from the output, which may move along with it."""
    here = str(out) == SIDECARS
    folder = "." if here else _relative(found.base, Path(out).absolute().parent)
    return {"folder": folder, **settings}


def _relative(folder: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(folder, start)).as_posix()
    except ValueError:  # another drive of Windows
        return folder.as_posix()


class Output:
    """Answers kept in memory: the base of what keeps them on disk.

    `earlier` names what was done by earlier runs, `path` is where the answers are.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.earlier: dict[str, Earlier] = {}
        self._items: list[BatchItem] = []

    def objection(self, name: str) -> str | None:
        """Return why the answer about a picture could not be kept, before it is asked for."""
        return None

    def forget(self, names: Collection[str]) -> None:
        """Drop answers of earlier runs, to ask again."""

    def write(self, items: Sequence[BatchItem]) -> None:
        """Keep more items; they are safe when this returns."""
        self._items += items

    def items(self) -> Iterator[BatchItem]:
        """Return all items, those of earlier runs included."""
        return iter(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""


class Lines(Output):
    """A file of JSON lines, which is the journal itself."""

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        restart: bool,
        journal_path: Path,
    ) -> None:
        super().__init__()
        self.path = path
        self._with_schema = settings["schema"] is not None
        self._journal = Journal(journal_path, settings)
        try:
            self._check()
            if restart:
                self._discard()
            self._journal.begin()
        except BaseException:
            self._journal.close()
            raise
        self.earlier = self._journal.earlier

    def _check(self) -> None:
        """Raise `ConversationError` where something foreign would be overwritten."""

    def _discard(self) -> None:
        self._journal.discard()

    def forget(self, names: Collection[str]) -> None:
        """Take the lines out."""
        if names:
            self._journal.forget(names)

    def write(self, items: Sequence[BatchItem]) -> None:
        """Append lines."""
        self._journal.append(items, with_schema=self._with_schema)

    def items(self) -> Iterator[BatchItem]:
        """Read the lines again."""
        return self._journal.items()

    def close(self) -> None:
        """Let go of the journal."""
        self._journal.close()


class Table(Lines):
    """A CSV file, written whole from the journal beside it whenever a run ends."""

    def __init__(
        self, path: Path, settings: Mapping[str, Any], *, restart: bool, journal_path: Path
    ) -> None:
        properties = (settings["schema"] or {}).get("properties")
        self._columns = list(properties) if isinstance(properties, dict) else []
        super().__init__(path, settings, restart=restart, journal_path=journal_path)

    def _check(self) -> None:
        assert self.path is not None
        _check_table(self.path, self._journal)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._write_table()
        except ConversationError as problem:
            if error is None:
                raise
            logger.warning("%s", problem)  # what ended the run matters more
        finally:
            self.close()

    def _write_table(self) -> None:
        assert self.path is not None
        delete_half_written(self.path)
        with telling(self.path), atomic_file(self.path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
            writer = csv.writer(text)
            writer.writerow([_cell(name) for name in self._header()])
            for item in self.items():
                writer.writerow([_cell(value) for value in self._row(item)])
            text.flush()
            text.detach()

    def _header(self) -> list[str]:
        own = ("file", "finish_reason", "error")
        values = [f"value.{name}" if name in own else name for name in self._columns]
        return ["file", *(values or [self._one_column]), "finish_reason", "error"]

    def _row(self, item: BatchItem) -> list[Any]:
        if self._columns:
            value = item.value if isinstance(item.value, dict) else {}
            values = [value.get(name) for name in self._columns]
        else:
            values = [item.text if not self._with_schema or item.failed else _json(item.value)]
        return [item.file, *values, item.finish_reason, item.error]

    @property
    def _one_column(self) -> str:
        return "value" if self._with_schema else "text"


def _check_table(path: Path, journal: Journal) -> None:
    """Raise `ConversationError` for a table that this batch did not write."""
    if not journal.is_ours and path.exists() and path.stat().st_size:
        raise ConversationError(
            f"'{path.name}' exists and is not from an earlier run of this batch, so it is left "
            "alone. Choose another output, or move that file away."
        )


class Sidecars(Lines):
    """A file beside each picture, `photo.jpg.txt` or with a schema `photo.jpg.json`.

    The journal has each answer first: a sidecar that a crash prevented is written by the next run,
    and one that no line of the journal speaks of is somebody else's.
    """

    def __init__(self, found: FoundPictures, settings: Mapping[str, Any], *, restart: bool) -> None:
        self._found = found
        super().__init__(
            found.base, settings, restart=restart, journal_path=found.base / SIDECAR_JOURNAL
        )
        try:
            self._write_missing()
        except BaseException:
            self.close()
            raise

    def objection(self, name: str) -> str | None:
        """Return why a sidecar cannot be written: something is there, or the system says no."""
        target = self._sidecar(name)
        try:
            os.lstat(target)
        except FileNotFoundError:
            if os.access(target.parent, os.W_OK):
                return None
            problem = "Permission denied"
        except OSError as error:
            problem = error.strerror or type(error).__name__
        else:
            return (
                f"There is a file '{target.name}' already that this batch did not write; it is "
                "left as it is. Move it away and try the picture again."
            )
        return f"The answer cannot be written beside the picture ({problem})."

    def write(self, items: Sequence[BatchItem]) -> None:
        """Append lines, then write the sidecars."""
        super().write(items)
        for item in items:
            self._write_sidecar(item)

    def forget(self, names: Collection[str]) -> None:
        """Delete what was written beside those pictures, and take the lines out."""
        self._delete_own(names)
        super().forget(names)

    def _discard(self) -> None:
        if self._journal.exists:
            self._delete_own(None)
        super()._discard()

    def _delete_own(self, names: Collection[str] | None) -> None:
        """Delete the sidecars of `names` (None: all) that are still as they were written."""
        written_with = self._journal.found_settings or {}
        with_schema = written_with.get("schema") is not None
        for item in self._journal.items():
            if not item.failed and (names is None or item.file in names):
                sidecar = self._sidecar(item.file, with_schema=with_schema)
                with telling(sidecar):
                    if sidecar.is_file() and sidecar.read_bytes() == _content(item, with_schema):
                        sidecar.unlink()

    def _write_missing(self) -> None:
        present = set(self._found.names)
        for item in self.items():
            sidecar = self._sidecar(item.file)
            if item.file in present and not os.path.lexists(sidecar):
                delete_half_written(sidecar)
                self._write_sidecar(item)

    def _write_sidecar(self, item: BatchItem) -> None:
        sidecar = self._sidecar(item.file)
        if not item.failed:
            with telling(sidecar), atomic_file(sidecar, overwrite=False) as file:
                file.write(_content(item, self._with_schema))

    def _sidecar(self, name: str, *, with_schema: bool | None = None) -> Path:
        suffix = "json" if (self._with_schema if with_schema is None else with_schema) else "txt"
        picture = self._found.path(name)
        return picture.with_name(f"{picture.name}.{suffix}")


def _content(item: BatchItem, with_schema: bool) -> bytes:
    text = _json(item.value, indent=2) if with_schema else item.text
    return f"{text}\n".encode(errors="replace")


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _cell(value: Any) -> Any:
    """Return what stands in a cell: text that a spreadsheet takes for a formula gets a quote."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return _json(value)
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value
