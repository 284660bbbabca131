"""A picture may take its worker process with it: never this program, nor the next picture."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from gemma3vl_app import picture_decoding, picture_workers
from gemma3vl_app.errors import BusyError, PictureError
from gemma3vl_app.pdf_pages import render_pages
from gemma3vl_app.picture_workers import PictureWorkers, decode_in_process, decode_in_workers
from gemma3vl_app.pictures import DEFAULT_LIMITS, Picture, PictureLimits
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui.desk import Desk
from tests import dangerous_decoding
from tests.picture_files import encoded, every_sort, pdf, photo

ROOT = Path(__file__).parents[1]

FILES = every_sort()
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="limits of processes as Linux has")


@pytest.fixture(scope="module")
def workers() -> Iterator[PictureWorkers]:
    workers = PictureWorkers(processes=1)
    yield workers
    workers.close()


@pytest.fixture
def dangerous(monkeypatch: pytest.MonkeyPatch) -> Iterator[PictureWorkers]:
    """One worker, for three seconds at most, that does what a picture's name says."""
    monkeypatch.setattr(picture_workers, "_PROGRAM", dangerous_decoding.PROGRAM)
    monkeypatch.setenv("SECRET_TOKEN", "hf_secret")
    workers = PictureWorkers(processes=1, picture_sec=3)
    rescue = threading.Timer(30, workers.close)  # or a test that waits for ever could not fail
    rescue.start()
    yield workers
    rescue.cancel()
    workers.close()


def outcome(decode: Any, data: bytes) -> Any:
    """The pixels, or the words of the refusal."""
    try:
        image = decode(data, "a.img", DEFAULT_LIMITS)
    except PictureError as error:
        return str(error)
    return image.mode, image.size, image.tobytes()


def pid_of(workers: PictureWorkers) -> int:
    (worker,) = workers._living
    return worker._process.pid


# --- the same pixels ---


@pytest.mark.parametrize("name", FILES)
def test_a_worker_gives_the_same_pixels_and_the_same_words(
    workers: PictureWorkers, name: str
) -> None:
    here = outcome(picture_decoding.decode, FILES[name])
    assert outcome(workers.decode, FILES[name]) == here


@pytest.mark.parametrize("size", [(3000, 2), (1, 3000), (1200, 1100)])
def test_pictures_that_take_several_pieces_come_whole(
    workers: PictureWorkers, size: tuple[int, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise))
    assert np.array_equal(np.asarray(workers.decode(data, "a", DEFAULT_LIMITS)), noise)


def test_pages_of_a_pdf_are_the_same(workers: PictureWorkers) -> None:
    file = pdf("red", "lime")
    here = [page.tobytes() for page in render_pages(file, "a", DEFAULT_LIMITS)]
    there = [page.tobytes() for page in workers.render_pages(file, "a", DEFAULT_LIMITS)]
    assert there == here and len(here) == 2
    with pytest.raises(PictureError, match="2 pages; the limit is 1"):
        list(workers.render_pages(file, "a", PictureLimits(max_pdf_pages=1)))
    with pytest.raises(PictureError, match="PDF 'a' is damaged"):
        list(workers.render_pages(b"%PDF-1.7 nothing", "a", DEFAULT_LIMITS))


def test_pages_nobody_wants_any_more_leave_a_worker_that_works(workers: PictureWorkers) -> None:
    file = pdf("red", "lime", "blue")
    pages = workers.render_pages(file, "a", DEFAULT_LIMITS)
    assert next(iter(pages)).mode == "RGB"
    del pages  # which ends what is being drawn
    assert outcome(workers.decode, encoded(photo()))[0] == "RGB"


# --- what goes wrong there ---


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crash", "'crash' cannot be read: it is damaged"),
        ("sleep", "'sleep' takes longer than 3 seconds"),
        ("compute", "'compute' (takes longer than 3 seconds|cannot be read)"),
        ("memory", "'memory' cannot be read.* too much memory"),
        ("huge", "'huge' cannot be read"),
        ("nonsense", "'nonsense' cannot be read"),
    ],
)
def test_a_picture_that_takes_its_worker_along_is_refused_and_the_next_one_works(
    dangerous: PictureWorkers, name: str, words: str
) -> None:
    good = outcome(picture_decoding.decode, encoded(photo()))
    with pytest.raises(PictureError, match=words):
        dangerous.decode(encoded(photo()), name, DEFAULT_LIMITS)
    assert outcome(dangerous.decode, encoded(photo())) == good
    assert len(dangerous._living) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no signal stops a process here")
def test_a_worker_that_is_stopped_is_given_up_and_the_next_picture_works(
    dangerous: PictureWorkers,
) -> None:
    good = outcome(dangerous.decode, encoded(photo()))
    large = encoded(photo(400, 300), "BMP")  # more than a pipe holds that nobody reads
    for file in (encoded(photo()), large):
        os.kill(pid_of(dangerous), signal.SIGSTOP)
        with pytest.raises(PictureError, match="'still' takes longer than 3 seconds"):
            dangerous.decode(file, "still", DEFAULT_LIMITS)
        assert outcome(dangerous.decode, encoded(photo())) == good
        assert len(dangerous._living) == 1


@linux_only
def test_a_picture_that_needs_more_memory_than_the_limits_allow_is_refused(
    dangerous: PictureWorkers,
) -> None:
    with pytest.raises(PictureError, match="too much memory"):
        dangerous.decode(encoded(photo()), "memory", DEFAULT_LIMITS)


def test_a_picture_does_not_suffer_for_the_one_before(dangerous: PictureWorkers) -> None:
    dangerous.decode(encoded(photo()), "damage", DEFAULT_LIMITS)
    damaged = pid_of(dangerous)
    assert dangerous.decode(encoded(photo()), "innocent", DEFAULT_LIMITS).size == photo().size
    assert pid_of(dangerous) != damaged


def test_a_worker_that_died_idle_is_replaced(dangerous: PictureWorkers) -> None:
    good = outcome(dangerous.decode, encoded(photo()))
    (worker,) = dangerous._living
    worker._process.kill()
    worker._process.wait()
    assert outcome(dangerous.decode, encoded(photo())) == good


def test_an_error_s_words_are_made_fit_to_show(dangerous: PictureWorkers) -> None:
    with pytest.raises(PictureError) as caught:
        dangerous.decode(encoded(photo()), "words", DEFAULT_LIMITS)
    assert str(caught.value).startswith("a[31mbbb") and len(str(caught.value)) < 700


def test_no_worker_is_left_behind_as_a_zombie(dangerous: PictureWorkers) -> None:
    before = {child.pid for child in psutil.Process().children()}
    for name in ("crash", "crash", "sleep"):
        with pytest.raises(PictureError):
            dangerous.decode(encoded(photo()), name, DEFAULT_LIMITS)
    assert {child.pid for child in psutil.Process().children()} == before
    dangerous.decode(encoded(photo()), "good", DEFAULT_LIMITS)
    pid = pid_of(dangerous)
    dangerous.close()
    assert not psutil.pid_exists(pid)


# --- what a worker may do ---


@linux_only
@pytest.mark.parametrize("what", ["read a file", "connect", "start a program", "start a process"])
def test_a_worker_opens_nothing_and_starts_nothing(dangerous: PictureWorkers, what: str) -> None:
    if what == "start a process" and os.getuid() == 0:
        pytest.skip("Linux does not count the administrator's processes")
    with pytest.raises(PictureError, match=r"^refused|cannot be read"):
        dangerous.decode(encoded(photo()), f"may {what}", DEFAULT_LIMITS)


def test_a_worker_knows_none_of_this_program_s_secrets(dangerous: PictureWorkers) -> None:
    with pytest.raises(PictureError) as caught:
        dangerous.decode(encoded(photo()), "secrets", DEFAULT_LIMITS)
    assert "MALLOC_ARENA_MAX" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_worker_imports_neither_torch_nor_gradio() -> None:
    code = "import sys, gemma3vl_app.picture_process; print({'torch', 'gradio'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- many at once ---


def test_threads_share_few_workers() -> None:
    workers = PictureWorkers(processes=2)
    files = [encoded(photo().point(lambda v, n=n: v ^ n)) for n in range(8)]
    expected = [outcome(picture_decoding.decode, file) for file in files]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda turn: outcome(workers.decode, files[turn % 8]), range(80)))
    assert found == expected * 10
    assert len(workers._living) <= 2
    workers.close()


def test_a_picture_too_many_in_line_is_told_to_come_later(dangerous: PictureWorkers) -> None:
    dangerous._line = threading.Semaphore(0)
    dangerous._free.acquire()
    with pytest.raises(BusyError, match="Try again later"):
        dangerous.decode(encoded(photo()), "good", DEFAULT_LIMITS)
    dangerous._free.release()
    assert dangerous.decode(encoded(photo()), "good", DEFAULT_LIMITS)


def test_a_worker_is_replaced_after_a_number_of_pictures(
    workers: PictureWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.decode(encoded(photo()), "a", DEFAULT_LIMITS)
    first = pid_of(workers)
    monkeypatch.setattr(picture_workers, "_PICTURES_PER_PROCESS", 1)
    workers.decode(encoded(photo()), "a", DEFAULT_LIMITS)
    workers.decode(encoded(photo()), "a", DEFAULT_LIMITS)
    assert not psutil.pid_exists(first)


# --- this program ends, or is forked ---

PARENT = """
import sys, threading
from gemma3vl_app import picture_workers
from gemma3vl_app.pictures import DEFAULT_LIMITS
from tests import dangerous_decoding
from tests.picture_files import encoded, photo

picture_workers._PROGRAM = dangerous_decoding.PROGRAM
workers = picture_workers.PictureWorkers(processes=1)
workers.decode(encoded(photo()), "good", DEFAULT_LIMITS)
(worker,) = workers._living
args = (encoded(photo()), sys.argv[1], DEFAULT_LIMITS)
threading.Thread(target=workers.decode, args=args, daemon=True).start()
while worker.is_fit and sys.argv[1] != "good":
    pass
print(worker._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("doing", ["good", "sleep", "compute"])
@pytest.mark.parametrize("end", ["killed", "ends"])
def test_a_worker_ends_with_this_program_whatever_it_is_doing(doing: str, end: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, doing],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # a worker never looks into the current folder
    )
    assert parent.stdin is not None and parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    if end == "killed":
        parent.kill()
    parent.communicate()
    worker.wait(timeout=20)


def decode_in_a_fork(workers: PictureWorkers, end: Any) -> None:
    image = workers.decode(encoded(photo()), "a", DEFAULT_LIMITS)
    end.send((image.tobytes(), pid_of(workers)))
    end.recv()


@linux_only
def test_a_forked_process_has_workers_of_its_own_and_holds_none_of_ours(
    workers: PictureWorkers,
) -> None:
    ours = workers.decode(encoded(photo()), "a", DEFAULT_LIMITS)
    pid = pid_of(workers)
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=decode_in_a_fork, args=(workers, there))
    with workers._lent("a", new=False) as worker:  # as to a thread, which the fork has not
        process.start()
    there.close()
    try:
        assert here.poll(20)
        theirs, other_pid = here.recv()
        assert theirs == ours.tobytes() and other_pid != pid
        worker._close_pipes()  # nobody else holds them: the process sees that no job comes
        worker._process.wait(timeout=20)
        here.send(None)
    finally:
        here.close()
        process.join(5)
        process.kill()
    with suppress(psutil.NoSuchProcess):
        psutil.Process(other_pid).wait(timeout=20)


# --- the switch ---


def workers_in_use() -> bool:
    return picture_workers._switch.workers() is not None


def test_a_program_decodes_its_own_pictures_until_it_asks_for_workers() -> None:
    assert not workers_in_use()
    decode_in_workers()
    decode_in_workers()
    picture = Picture.open(encoded(photo()))
    workers = picture_workers._switch.workers()
    assert workers is not None and len(workers._living) == 1
    assert picture == Picture.open(photo())
    decode_in_process()
    assert not workers_in_use() and not workers._living


def test_a_page_that_is_set_up_decodes_in_workers(tmp_path: Path) -> None:
    Desk.set_up(lambda: ScriptedBackend(), tmp_path)
    assert workers_in_use()


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(picture_workers.VARIABLE, "1")
    assert workers_in_use()
    monkeypatch.setenv(picture_workers.VARIABLE, "0")
    decode_in_workers()
    assert not workers_in_use()
    monkeypatch.setenv(picture_workers.VARIABLE, "many")
    with pytest.raises(PictureError, match="expected a number from 0 to 16"):
        Picture.open(encoded(photo()))


def test_a_picture_that_is_decoded_again_is_so_in_a_worker() -> None:
    decode_in_workers()
    picture = Picture.open(encoded(photo()))
    from gemma3vl_app import pictures

    pictures._decoded.clear()
    decode_in_process()
    decode_in_workers()
    assert np.array_equal(np.asarray(picture.rgb), np.asarray(photo()))
    workers = picture_workers._switch.workers()
    assert workers is not None and len(workers._living) == 1
