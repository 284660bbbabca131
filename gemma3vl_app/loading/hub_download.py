"""Files of the hub into its cache: over plain HTTP, continued where they broke off, and checked.

Unlike what huggingface_hub does by itself, a part that has arrived is kept and continued, by a
later process too, and every file has to match the hash that the hub announced for it. Knows
nothing of what is in the files.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import httpx2
from filelock import Timeout
from huggingface_hub import constants

# Public there, but not re-exported in a way that mypy follows
from huggingface_hub.utils import WeakFileLock, get_session  # type: ignore[attr-defined]

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.hub_cache import HubFile, Repo, file_size
from gemma3vl_app.loading.hub_errors import Patience, Refusal, token

FILE_TRIES = 5  # failures in a row, with less than ENOUGH_BYTES between them
ENOUGH_BYTES = 1 << 20
REPORT_EVERY_SEC = 0.2
LOCK_SEC = 2.0  # between two looks at how far another process is
BLOCK_BYTES = 1 << 20


def download_missing(wish: Repo, commit: str, files: list[HubFile], report: Report) -> None:
    """Bring what is missing of a commit into its snapshot; raises `LoadError`."""
    snapshot = wish.snapshot(commit)
    missing = [file for file in files if file_size(snapshot / file.name) != file.size_bytes]
    _check_room(wish, missing)
    meter = _Meter(wish.id, report, files, missing)
    for file in missing:
        meter.begin(file)
        # The cache may hold it already: other commits share their unchanged files.
        if file_size(wish.blob(file)) != file.size_bytes:
            _download(wish, commit, file, meter)
        _link(wish.blob(file), snapshot / file.name)
        meter.end()


def _check_room(wish: Repo, missing: list[HubFile]) -> None:
    absent = [file for file in missing if file_size(wish.blob(file)) != file.size_bytes]
    needed = sum(file.size_bytes - max(file_size(wish.partial(file)), 0) for file in absent)
    existing = next(path for path in (wish.folder, *wish.folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise LoadError(
            f"{wish.id} needs {_shown(needed)} more, but the disk of the hub's cache has "
            f"{_shown(free)} left. Free some (`hf cache ls` shows what is there), or set HF_HOME "
            "to a folder on a larger disk."
        )


def _download(wish: Repo, commit: str, file: HubFile, meter: _Meter) -> None:
    """Bring one file into the cache; another process that is at it is waited for."""
    blob, partial = wish.blob(file), wish.partial(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    wish.lock(file).parent.mkdir(parents=True, exist_ok=True)
    with _locked(wish.lock(file), waiting=lambda: meter.at(max(file_size(partial), 0))):
        if file_size(blob) == file.size_bytes:
            return
        if file_size(partial) > file.size_bytes:
            partial.unlink()
        with partial.open("a+b") as out:
            intact = _continue(wish, commit, file, out, meter)
        if not intact:
            partial.unlink()
            raise LoadError(
                f"{file.name} of {wish.id} arrived damaged and was deleted. Try again; if it comes "
                "back, the hub or something on the way to it changes files."
            )
        os.replace(partial, blob)


def _continue(wish: Repo, commit: str, file: HubFile, out: BinaryIO, meter: _Meter) -> bool:
    """Download from where `out` ends; return whether the file is what was announced."""
    address = f"{constants.ENDPOINT}/{wish.id}/resolve/{commit}/{quote(file.name)}"
    patience = Patience(wish, FILE_TRIES)
    digest, have = file.digest(), 0
    out.seek(0)
    for _ in range(-(-os.fstat(out.fileno()).st_size // BLOCK_BYTES)):
        block = out.read(BLOCK_BYTES)
        digest.update(block)
        have += len(block)
    while have < file.size_bytes:
        before = have
        headers = request_headers() | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with get_session().stream(
                "GET", address, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                if response.status_code == 416:  # the file ends before what was announced
                    return False
                check_answer(response)
                if have and response.status_code == 200:  # all of it, whatever was asked for
                    out.truncate(0)
                    digest, have, before = file.digest(), 0, 0
                elif have and not response.headers.get("Content-Range", "").startswith(
                    f"bytes {have}-"
                ):
                    return False
                for chunk in response.iter_raw():
                    if have + len(chunk) > file.size_bytes:
                        return False
                    out.write(chunk)
                    digest.update(chunk)
                    have += len(chunk)
                    meter.at(have)
            if have < file.size_bytes:
                raise httpx2.RemoteProtocolError("the file ended early")
        except (httpx2.HTTPError, Refusal) as error:
            out.flush()
            if have - before >= ENOUGH_BYTES:
                patience = Patience(wish, FILE_TRIES)
            patience.after(error)
    return digest.hexdigest() == file.hash


@contextlib.contextmanager
def _locked(lock: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock that huggingface_hub takes for this file, too."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(lock, timeout=LOCK_SEC))
                break
            except Timeout:
                waiting()
        yield


def _link(blob: Path, target: Path) -> None:
    """Let the snapshot's file be the blob, as the hub's cache does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        aside.symlink_to(os.path.relpath(blob, target.parent))
    except OSError:  # no symbolic links here, as on most Windows machines
        os.replace(blob, target)
    else:
        os.replace(aside, target)


class _Meter:
    """Counts bytes over all files, and reports a few times a second."""

    def __init__(
        self, repo: str, report: Report, files: list[HubFile], missing: list[HubFile]
    ) -> None:
        self._repo, self._report = repo, report
        self._total = sum(file.size_bytes for file in files)
        self._before = self._total - sum(file.size_bytes for file in missing)
        self._reported_at = 0.0

    def begin(self, file: HubFile) -> None:
        self._file = file
        self._send(0)

    def at(self, have: int) -> None:
        if time.monotonic() - self._reported_at >= REPORT_EVERY_SEC:
            self._send(have)

    def end(self) -> None:
        self._send(self._file.size_bytes)
        self._before += self._file.size_bytes

    def _send(self, have: int) -> None:
        self._reported_at = time.monotonic()
        message = f"Downloading {self._repo}: {self._file.name}"
        self._report(Progress("download", self._before + have, self._total, "bytes", message))


def _shown(bytes_: int) -> str:
    return f"{bytes_ / 1e9:,.1f} GB" if bytes_ >= 1e8 else f"{bytes_ / 1e6:,.1f} MB"


# --- requests ---


def ask(path: str) -> httpx2.Response:
    """Request a path of the hub; raises `httpx2.HTTPError`."""
    return get_session().get(
        f"{constants.ENDPOINT}/{path}",
        headers=request_headers(),
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
    )


def check_answer(response: httpx2.Response) -> None:
    """Raise `Refusal` unless the answer is what was asked for."""
    if response.status_code not in (200, 206):
        asked = response.headers.get("Retry-After", "")
        raise Refusal(
            status=response.status_code,
            code=response.headers.get("X-Error-Code", ""),
            wait_sec=float(asked[:9]) if asked.isdecimal() else 0.0,
        )


def request_headers() -> dict[str, str]:
    """Return what goes with a request: who asks, and the token, if there is one."""
    # A packed file cannot be continued in its middle.
    headers = {"User-Agent": "gemma3vl", "Accept-Encoding": "identity"}
    secret = token()
    if secret is None:
        return headers
    if not re.fullmatch(r"[!-~]+", secret):
        raise LoadError(
            "The hub token on this machine holds characters that no token has. Correct HF_TOKEN, "
            "or run `hf auth login`."
        )
    return headers | {"Authorization": f"Bearer {secret}"}
