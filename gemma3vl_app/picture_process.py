"""What runs in a worker process: a picture's or PDF's bytes in, pixels or an error's words out.

The process reads jobs from its standard input and writes answers to its standard output until its
input ends, which is when its parent has gone. It opens no file, no connection and no process, and
knows no secret: what it is given may have been made to take it over. Nothing is unpickled on either
side. `picture_workers` starts these processes; both ends of the wire are written here.
"""

from __future__ import annotations

import io
import json
import os
import queue
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import FileIO
from typing import Literal

from PIL import Image

from gemma3vl_app.errors import PictureError
from gemma3vl_app.pdf_pages import render_pages
from gemma3vl_app.picture_decoding import MIB, PictureLimits, check_size, decode

Kind = Literal["picture", "pages"]

_JOB = struct.Struct(">II")  # bytes of the header (JSON), bytes of the file
_ANSWER = struct.Struct(">cII")  # a kind and two numbers, see `write_image` and its neighbours
_STRIP_BYTES = MIB
_MOST_WORDS = 600
_BASE_BYTES = 512 * MIB  # the interpreter and its libraries
# Measured: 8 to 17, and 26 for a lossless WebP with transparency, orientation and colour profile.
_BYTES_PER_PIXEL = 40


@dataclass(frozen=True)
class Job:
    """What one answer is wanted for; `cpu_sec` bounds each picture or page."""

    kind: Kind
    name: str
    limits: PictureLimits
    cpu_sec: int


class WireError(Exception):
    """The other end has gone, or says what makes no sense."""


# --- the wire -------------------------------------------------------------------------------------


def write_job(pipe: FileIO, job: Job, data: bytes) -> None:
    """Send a job with the file that it is about."""
    header = json.dumps(asdict(job)).encode()
    _write(pipe, _JOB.pack(len(header), len(data)) + header)
    _write(pipe, data)


def read_job(pipe: FileIO) -> tuple[Job, bytes]:
    """Receive a job; raises `WireError` when there are no more."""
    header_bytes, data_bytes = _JOB.unpack(_read(pipe, _JOB.size))
    header = json.loads(_read(pipe, header_bytes))
    job = Job(**header | {"limits": PictureLimits(**header["limits"])})
    return job, bytes(_read(pipe, data_bytes))


def write_image(pipe: FileIO, image: Image.Image) -> None:
    """Send the pixels of a picture of mode "RGB", some rows at a time."""
    _write(pipe, _ANSWER.pack(b"P", image.width, image.height))
    for top, bottom in _strips(image.width, image.height):
        _write(pipe, image.crop((0, top, image.width, bottom)).tobytes())


def write_error(pipe: FileIO, words: str) -> None:
    """Send why there is no picture."""
    encoded = words[:_MOST_WORDS].encode(errors="replace")
    _write(pipe, _ANSWER.pack(b"E", len(encoded), 0) + encoded)


def write_end(pipe: FileIO) -> None:
    """Say that the job is done."""
    _write(pipe, _ANSWER.pack(b".", 0, 0))


def read_answer(pipe: FileIO, name: str, limits: PictureLimits) -> Image.Image | None:
    """Receive the next picture of a job; None after its last.

    Raises `PictureError` with what the process says, and `WireError` for what it cannot rightly
    say: it may be somebody else's by now.
    """
    kind, first, second = _ANSWER.unpack(_read(pipe, _ANSWER.size))
    if kind == b"P":
        try:
            check_size(first, second, name, limits)
        except PictureError as error:
            raise WireError from error
        return _read_image(pipe, first, second)
    if kind == b"E" and first <= 4 * _MOST_WORDS:
        words = _read(pipe, first).decode(errors="replace")
        raise PictureError("".join(c for c in words if c.isprintable())[:_MOST_WORDS])
    if kind == b".":
        return None
    raise WireError


def _read_image(pipe: FileIO, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), None)  # not filled: every row follows
    for top, bottom in _strips(width, height):
        rows = _read(pipe, 3 * width * (bottom - top))
        image.paste(Image.frombytes("RGB", (width, bottom - top), rows), (0, top))
    return image


def _strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Cut a picture into strips that are sent one by one: neither end holds it twice."""
    rows = max(1, _STRIP_BYTES // (3 * width))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _write(pipe: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[pipe.write(left) or 0 :]


def _read(pipe: FileIO, count: int) -> bytearray:
    found = bytearray(count)
    left = memoryview(found)
    while left:
        read = pipe.readinto(left)
        if not read:
            raise WireError
        left = left[read:]
    return found


# --- the process ----------------------------------------------------------------------------------


def main() -> None:
    """Answer jobs until the parent has gone."""
    source, answers = _take_the_pipes()
    jobs: queue.Queue[tuple[Job, bytes]] = queue.Queue(maxsize=1)
    threading.Thread(target=_read_jobs, args=(source, jobs), daemon=True).start()
    try:
        _give_up_rights()
        while True:
            _answer(answers, *jobs.get())
    finally:  # whatever went wrong: the parent sees that there is no answer
        os._exit(1)


def _take_the_pipes() -> tuple[FileIO, FileIO]:
    """Return input and output, out of reach of what a library might print."""
    source, answers = FileIO(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    return source, answers


def _read_jobs(source: FileIO, jobs: queue.Queue[tuple[Job, bytes]]) -> None:
    """Hand on jobs; when the parent goes, end the process, whatever it is doing."""
    try:
        while True:
            jobs.put(read_job(source))
    finally:
        os._exit(0)


def _answer(answers: FileIO, job: Job, data: bytes) -> None:
    _bound_memory(job.limits)
    _bound_time(job.cpu_sec)
    try:
        if job.kind == "pages":
            for page in render_pages(data, job.name, job.limits):
                write_image(answers, page)
                _bound_time(job.cpu_sec)
        else:
            write_image(answers, decode(data, job.name, job.limits))
    except PictureError as error:
        write_error(answers, str(error))
    else:
        write_end(answers)


def _give_up_rights() -> None:
    """Never again open a file or a connection, start a process, write a file or dump memory.

    A system that knows no such limit keeps the rest of the protection: a process of its own.
    """
    _import_what_decoding_imports_late()
    with suppress(ImportError):
        import resource

        for right in ("RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CORE"):
            with suppress(AttributeError, OSError, ValueError):
                resource.setrlimit(getattr(resource, right), (0, 0))


def _import_what_decoding_imports_late() -> None:
    from PIL import MpoImagePlugin, TiffImagePlugin  # noqa: F401 (for MPO files and for EXIF)

    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    decode(buffer.getvalue(), "", PictureLimits())


def _bound_memory(limits: PictureLimits) -> None:
    bound = _BASE_BYTES + _BYTES_PER_PIXEL * limits.max_pixels
    with suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (bound, resource.RLIM_INFINITY))


def _bound_time(cpu_sec: int) -> None:
    """Let the system end this process when it computes for longer, even without a parent."""
    with suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        bound = int(used.ru_utime + used.ru_stime) + cpu_sec + 1
        resource.setrlimit(resource.RLIMIT_CPU, (bound, resource.RLIM_INFINITY))
