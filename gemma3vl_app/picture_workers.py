"""Where pictures are decoded: in this process, or in worker processes that may die of them.

A damaged or hostile file can crash an image library or keep it busy for ever, and Pillow before 13
has known holes. A server therefore calls `decode_in_workers` once: from then on such a file costs a
worker process, and its sender gets a `PictureError`. A program that opens its owner's pictures
decodes them itself, which spares it a process and a copy of the pixels; docs/security.md has the
measurements. The environment variable GEMMA3VL_PICTURE_WORKERS decides for both: a number of
processes, or 0 for none.

`picture_process` is what runs in a worker.
"""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from io import FileIO
from typing import cast

from PIL import Image

from gemma3vl_app import pdf_pages, picture_decoding
from gemma3vl_app.errors import BusyError, PictureError
from gemma3vl_app.picture_decoding import PictureLimits
from gemma3vl_app.picture_process import Job, Kind, WireError, read_answer, write_job

VARIABLE = "GEMMA3VL_PICTURE_WORKERS"
PROCESSES, MOST_PROCESSES = 2, 16
MAX_WAITING = 64
# The slowest picture within the default limits took 6 s on two old cores.
PICTURE_SEC = 30.0
_PICTURES_PER_PROCESS = 500  # then a new one: nothing that leaks or lingers does so for long

# What a worker needs of this process's environment: where libraries are, and none of its secrets.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL")
_QUIET = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; from gemma3vl_app.picture_process import main; main()"
)

_log = logging.getLogger(__name__)


# --- the switch -----------------------------------------------------------------------------------


def decode_in_workers() -> None:
    """Decode pictures in worker processes from now on, in all of this program.

    For programs that open what strangers send. The processes start with the first picture, and end
    with the program. Calling it again changes nothing.
    """
    _switch.wanted = True


def decode_in_process() -> None:
    """Decode pictures in this process from now on, as at the start; ends the workers."""
    _switch.wanted = False
    _switch.close()


def decode(data: bytes, name: str, limits: PictureLimits) -> Image.Image:
    """Do what `picture_decoding.decode` does, where it is to be done."""
    workers = _switch.workers()
    if workers is None:
        return picture_decoding.decode(data, name, limits)
    return workers.decode(data, name, limits)


def render_pages(data: bytes, name: str, limits: PictureLimits) -> Iterator[Image.Image]:
    """Do what `pdf_pages.render_pages` does, where it is to be done."""
    workers = _switch.workers()
    if workers is None:
        return pdf_pages.render_pages(data, name, limits)
    return workers.render_pages(data, name, limits)


class _Switch:
    """Whether this program decodes in workers, and in which."""

    def __init__(self) -> None:
        self.wanted = False
        self._workers: PictureWorkers | None = None
        self._lock = threading.Lock()

    def workers(self) -> PictureWorkers | None:
        """Return the workers to use, made when first asked for; None to use none."""
        stated = os.environ.get(VARIABLE, "").strip()
        if not stated and not self.wanted:
            return None
        processes = _number(stated) if stated else PROCESSES
        if processes == 0:
            return None
        with self._lock:
            if self._workers is None:
                self._workers = PictureWorkers(processes=processes)
            return self._workers

    def close(self) -> None:
        with self._lock:
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()

    def forget_threads(self) -> None:
        """Be usable in a forked process, where whoever held the lock does not exist."""
        self._lock = threading.Lock()


def _number(stated: str) -> int:
    if not stated.isdecimal() or int(stated) > MOST_PROCESSES:
        raise PictureError(
            f"{VARIABLE} is '{stated}'; expected a number from 0 to {MOST_PROCESSES}."
        )
    return int(stated)


# --- workers --------------------------------------------------------------------------------------


class PictureWorkers:
    """Up to `processes` processes that decode pictures, one each at a time; for any thread.

    A process that dies of a picture, or takes longer than `picture_sec` for it or for one page, is
    ended and replaced with the next picture. With `max_waiting` waiting, the next gets `BusyError`.
    """

    def __init__(
        self,
        *,
        processes: int = PROCESSES,
        max_waiting: int = MAX_WAITING,
        picture_sec: float = PICTURE_SEC,
    ) -> None:
        self._processes, self._max_waiting = processes, max_waiting
        self._picture_sec = picture_sec
        self._living: set[_Worker] = set()
        self._start_anew()
        _all_workers.add(self)
        _watch_this_process()

    def decode(self, data: bytes, name: str, limits: PictureLimits) -> Image.Image:
        """Do what `picture_decoding.decode` does; also raises `BusyError`."""
        picture_decoding.check_bytes(len(data), name, limits)
        picture_decoding.picture_format(data, name)  # what is none needs no process
        with closing(self._answers("picture", data, name, limits)) as images:
            image = next(images, None)
            if image is None or next(images, None) is not None:
                raise _Died(name)
            return image

    def render_pages(self, data: bytes, name: str, limits: PictureLimits) -> Iterator[Image.Image]:
        """Do what `pdf_pages.render_pages` does; also raises `BusyError`."""
        picture_decoding.check_bytes(len(data), name, limits)
        with closing(self._answers("pages", data, name, limits)) as pages:
            for number, page in enumerate(pages, start=1):
                if number > limits.max_pdf_pages:
                    raise _Died(name)
                yield page

    def close(self) -> None:
        """End all processes; whoever waits for one gets a `PictureError`."""
        while self._idle:
            with suppress(IndexError):  # somebody was quicker
                self._end(self._idle.pop())
        for worker in list(self._living):
            worker.kill()  # whoever it is lent to does the rest

    def _answers(
        self, kind: Kind, data: bytes, name: str, limits: PictureLimits
    ) -> Generator[Image.Image, None, None]:
        """Yield what a process answers; where a used one dies at once, what a new one answers.

        An earlier picture may have damaged it: this one must not suffer for that.
        """
        job = Job(kind, name, limits, cpu_sec=max(1, round(self._picture_sec)))
        is_used = True
        while True:
            with self._lent(name, new=not is_used) as worker:
                is_used, answered = worker.is_used, False
                try:
                    for image in worker.answers(job, data, self._picture_sec):
                        answered = True
                        yield image
                    return
                except _Died:
                    if answered or not is_used:
                        raise
                    is_used = False

    @contextmanager
    def _lent(self, name: str, *, new: bool) -> Iterator[_Worker]:
        """Lend a process that nobody else uses; waits for one if need be."""
        self._wait_in_line()
        try:
            worker = self._new(name) if new else self._idle_or_new(name)
            try:
                yield worker
            finally:
                if worker.is_fit:
                    self._idle.append(worker)
                else:
                    self._end(worker)
        finally:
            self._free.release()

    def _wait_in_line(self) -> None:
        if self._free.acquire(blocking=False):
            return
        if not self._line.acquire(blocking=False):
            raise BusyError("Too many pictures are waiting to be read. Try again later.")
        try:
            self._free.acquire()
        finally:
            self._line.release()

    def _idle_or_new(self, name: str) -> _Worker:
        with suppress(IndexError):
            while (worker := self._idle.pop()).has_ended:  # the system may have needed its memory
                self._end(worker)
            return worker
        return self._new(name)

    def _new(self, name: str) -> _Worker:
        try:
            worker = _Worker()
        except OSError as error:
            _log.warning("No process that decodes pictures can be started.", exc_info=True)
            raise PictureError(
                f"Picture '{name}' cannot be read now: this computer has no room for the process "
                "that reads pictures. Try again later."
            ) from error
        self._living.add(worker)
        return worker

    def _end(self, worker: _Worker) -> None:
        self._living.discard(worker)
        worker.end()

    def _start_anew(self) -> None:
        self._idle: list[_Worker] = []
        self._free = threading.Semaphore(self._processes)
        self._line = threading.Semaphore(self._max_waiting)

    def forget_parent(self) -> None:
        """Leave the workers to the process that this one was forked from, and have new ones."""
        for worker in self._living:
            worker.let_go()
        self._living = set()
        self._start_anew()


class _Worker:
    """One process, and the pipes to it. Its thread of use is whoever it is lent to."""

    def __init__(self) -> None:
        folders = [folder for folder in sys.path if folder]  # never the current one
        # -I: no variable of the environment and no current folder decides what it imports.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={key: os.environ[key] for key in _ENVIRONMENT if key in os.environ} | _QUIET,
            bufsize=0,  # nothing is half written when a pipe is closed
            start_new_session=True,  # Ctrl-C is for this program; it ends its workers
        )
        # Without a buffer, both are plain files.
        self._jobs = cast(FileIO, self._process.stdin)
        self._found = cast(FileIO, self._process.stdout)
        self._uses = 0
        self.is_fit = True

    @property
    def is_used(self) -> bool:
        """Whether it has answered before."""
        return self._uses > 0

    @property
    def has_ended(self) -> bool:
        """Whether the process is no more."""
        return self._process.poll() is not None

    def answers(self, job: Job, data: bytes, each_sec: float) -> Iterator[Image.Image]:
        """Yield the pictures of a job, each within `each_sec`."""
        self.is_fit = False  # until all has been said
        try:
            with self._ended_after(each_sec, job.name):
                write_job(self._jobs, job, data)
                image = read_answer(self._found, job.name, job.limits)
            while image is not None:
                yield image
                with self._ended_after(each_sec, job.name):
                    image = read_answer(self._found, job.name, job.limits)
        except PictureError as error:
            self._note_use(is_fit=not isinstance(error, _TooSlow))
            raise
        except (OSError, WireError) as error:
            raise _Died(job.name) from error
        self._note_use(is_fit=True)

    def _note_use(self, *, is_fit: bool) -> None:
        self._uses += 1
        self.is_fit = is_fit and self._uses < _PICTURES_PER_PROCESS

    @contextmanager
    def _ended_after(self, seconds: float, name: str) -> Iterator[None]:
        """End the process when what is done meanwhile takes longer, and say so."""
        too_slow = threading.Event()

        def end() -> None:
            too_slow.set()
            self._process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # it has ended the process, or never will
            if too_slow.is_set():
                raise _TooSlow(name, seconds)

    def kill(self) -> None:
        """Let the system end the process."""
        self._process.kill()

    def end(self) -> None:
        """End the process, and wait until the system has forgotten it."""
        self._process.kill()
        self._close_pipes()
        self._process.wait()

    def let_go(self) -> None:
        """Forget a process that is not this one's child, without a word to it."""
        self._close_pipes()
        self._process.returncode = 0  # nothing for Python to wait for

    def _close_pipes(self) -> None:
        for pipe in (self._jobs, self._found):
            with suppress(OSError):
                pipe.close()


class _TooSlow(PictureError):
    """A picture for which a process had to be ended."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(
            f"'{name}' takes longer than {seconds:g} seconds to read. Send a smaller version, or "
            "save it again as PNG or JPEG."
        )


class _Died(PictureError):
    """A picture that a process ended over, or gave nonsense for."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"'{name}' cannot be read: it is damaged, or needs too much memory. Save it again as "
            "PNG or JPEG, or send a smaller version."
        )


# --- this process ends, or is forked --------------------------------------------------------------

_switch = _Switch()
_all_workers: weakref.WeakSet[PictureWorkers] = weakref.WeakSet()


@cache
def _watch_this_process() -> None:
    atexit.register(_end_all)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_parent)


def _end_all() -> None:
    for workers in list(_all_workers):
        workers.close()


def _forget_parent() -> None:
    _switch.forget_threads()
    for workers in list(_all_workers):
        workers.forget_parent()
