"""Models of the Hugging Face hub: downloaded once into the hub's cache, checked, offline after.

Knows repositories, commits and files, and nothing of what is in them. The cache is the one that
other tools share, in their layout. Files come over plain HTTP: unlike what huggingface_hub does by
itself, a part that has arrived is kept and continued, by a later process too, and every file has to
match the hash that the hub announced for it. docs/hub.md lists the messages.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx2  # what huggingface_hub talks through; its errors come from here
from filelock import Timeout
from huggingface_hub import constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    WeakFileLock,
    get_session,
    validate_repo_id,
)

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress

Report = Callable[[Progress], None]

COMMIT = re.compile(r"[0-9a-f]{40}")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's SHA-1 of a small file, SHA-256 of a large
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
LONGEST_REVISION = 200

# All that a model is loaded from; nothing that could run code is ever fetched.
WANTED = re.compile(
    r"[\w.-]+\.safetensors|model\.safetensors\.index\.json|(adapter_|generation_|preprocessor_"
    r"|processor_|tokenizer_)?config\.json|tokenizer\.json|chat_template\.(json|jinja)"
    r"|(special_tokens_map|added_tokens)\.json"
)
NOT_READ = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")

LISTING_TRIES = 3
FILE_TRIES = 5  # failures in a row, with less than ENOUGH_BYTES between them
ENOUGH_BYTES = 1 << 20
FIRST_WAIT_SEC = 1.0  # doubled after each failure
LONGEST_WAIT_SEC = 30.0  # that the hub may ask for before it is an error
REPORT_EVERY_SEC = 0.2
LOCK_SEC = 2.0  # between two looks at how far another process is
BLOCK_BYTES = 1 << 20

logger = logging.getLogger(__name__)


class HubError(LoadError):
    """The hub does not give a model, for now or to this person; a complete copy would still do."""


@dataclass
class _Refusal(Exception):
    """The hub answered something else than what was asked for."""

    status: int
    code: str  # the hub's own word for it: GatedRepo, RepoNotFound, RevisionNotFound
    wait_sec: float


@dataclass(frozen=True)
class HubFile:
    """A file of a commit: its size and its hash, which is also its name in the cache."""

    name: str
    size_bytes: int
    hash: str

    def digest(self) -> hashlib._Hash:
        """Return the beginning of the hash that the hub names the file by."""
        if len(self.hash) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size_bytes)


@dataclass(frozen=True)
class _Repo:
    """A repository, its wanted revision, and its folder in the hub's cache."""

    id: str
    revision: str

    @property
    def folder(self) -> Path:
        return Path(constants.HF_HUB_CACHE) / f"models--{self.id.replace('/', '--')}"

    @property
    def ref(self) -> Path:
        return self.folder / "refs" / self.revision

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.id}"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def listing(self, commit: str) -> Path:
        """Our list of what the commit consists of: tells a complete snapshot from a broken off."""
        return self.folder / "gemma3vl" / f"{commit}.json"

    def blob(self, file: HubFile) -> Path:
        return self.folder / "blobs" / file.hash

    def partial(self, file: HubFile) -> Path:
        return self.folder / "blobs" / f"{file.hash}.incomplete"

    def lock(self, file: HubFile) -> Path:
        return Path(constants.HF_HUB_CACHE) / ".locks" / self.folder.name / f"{file.hash}.lock"


def hub_folder(repo: str, *, revision: str | None = None, progress: Report | None = None) -> Path:
    """Return the local folder of a model from the Hugging Face hub, downloading what is missing.

    `revision` is a branch, a tag or a commit; a commit that is complete on this machine costs no
    request. `progress` counts bytes over all files. Raises `LoadError`.
    """
    wish = _checked(repo, revision)
    # 1) What is complete here is used where it cannot change, or where nothing else is allowed.
    local = _complete_snapshot(wish)
    if local is not None and (COMMIT.fullmatch(wish.revision) or constants.is_offline_mode()):
        return local
    if constants.is_offline_mode():
        raise HubError(
            f"{wish.id} is not complete on this machine, and HF_HUB_OFFLINE forbids to download "
            "it. Unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or load a folder that has it."
        )
    try:
        # 2) The hub says which commit is meant, and what belongs to it.
        commit, files = _list_files(wish, LISTING_TRIES if local is None else 1)
        # 3) What is missing is downloaded.
        _note(wish.listing(commit), json.dumps([asdict(file) for file in files]))
        _download_missing(wish, commit, files, progress or (lambda step: None))
        _note(wish.ref, commit)  # last: until then, offline means the older, complete commit
    except HubError as error:
        if local is None:
            raise
        logger.warning("%s The copy on this machine is used.", error)
        return local
    except OSError as error:
        raise _disk_error(wish, error) from error
    return wish.snapshot(commit)


def hub_revision(folder: Path) -> str | None:
    """Return the commit that a snapshot folder of the hub's cache holds; None for other folders."""
    folder = folder.absolute()
    inside = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    return folder.name if inside and COMMIT.fullmatch(folder.name) else None


def _checked(repo: str, revision: str | None) -> _Repo:
    """Return names that are safe to use in paths and addresses."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise LoadError(
            f"{repo[:80]!r} is no model of the hub. Its names look like google/gemma-3-4b-it."
        ) from None
    revision = revision or constants.DEFAULT_REVISION
    if not REVISION.fullmatch(revision) or len(revision) > LONGEST_REVISION:
        raise LoadError(
            f"{revision[:80]!r} is no revision of {repo}. Give a branch, a tag or a commit."
        )
    return _Repo(repo, revision)


# --- what is on this machine


def _complete_snapshot(wish: _Repo) -> Path | None:
    """Return the snapshot that the revision last meant, if nothing of it is missing."""
    commit = wish.revision
    if not COMMIT.fullmatch(commit):
        commit = _read_text(wish.ref).strip()
    if not COMMIT.fullmatch(commit):
        return None
    snapshot = wish.snapshot(commit)
    try:
        listed = [HubFile(**entry) for entry in json.loads(_read_text(wish.listing(commit)))]
        known = {snapshot / file.name: file.size_bytes for file in listed}
    except (ValueError, TypeError):
        known = {}
    complete = all(_size(path) == size for path, size in known.items())
    return snapshot if complete and (known or _looks_complete(snapshot)) else None


def _looks_complete(snapshot: Path) -> bool:
    """Whether a snapshot that another tool downloaded has all that a model or an adapter needs."""
    if (snapshot / "adapter_model.safetensors").is_file():
        return (snapshot / "adapter_config.json").is_file()
    shards = ["model.safetensors"]
    if index := _read_text(snapshot / "model.safetensors.index.json"):
        try:
            shards = [str(file) for file in json.loads(index)["weight_map"].values()]
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
    return all((snapshot / file).is_file() for file in {"config.json", "tokenizer.json", *shards})


def _read_text(path: Path) -> str:
    """Return a small file's text, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _size(path: Path) -> int:
    """Return a file's size in bytes, -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _note(path: Path, text: str) -> None:
    """Write a small file whole or not at all; a cache that may only be read stays as it is."""
    if _read_text(path) == text:
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        logger.debug("%s could not be noted: %s", path.name, error.strerror)


# --- what the hub has


def _list_files(wish: _Repo, tries: int) -> tuple[str, list[HubFile]]:
    """Return the commit that the revision means, and its files that a model is loaded from.

    Not by `HfApi`: its requests bring others along that tell the hub which tools run here.
    """
    path = f"api/models/{wish.id}/revision/{quote(wish.revision, safe='')}?blobs=true"
    patience = _Patience(wish, tries)
    while True:
        try:
            response = _ask(path)
            _check_answer(response)
            break
        except (httpx2.HTTPError, httpx2.InvalidURL, _Refusal) as error:
            if isinstance(error, _Refusal) and error.status in (401, 404):
                _check_kind(wish, error)
            patience.after(error)
    try:
        info = response.json()
        commit = info["sha"]
        names = [str(entry["rfilename"]) for entry in info["siblings"]]
        files = [
            _hub_file(entry) for entry in info["siblings"] if WANTED.fullmatch(entry["rfilename"])
        ]
        if not COMMIT.fullmatch(commit):
            raise ValueError("no commit")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _no_hub() from error
    if not any(file.name.endswith(".safetensors") for file in files):
        others = [name for name in names if name.endswith(NOT_READ)]
        what = f"only {others[0][:80]!a} and the like" if others else "no weights"
        raise LoadError(
            f"{wish.id} holds {what}; models are loaded from safetensors. Look for a version with "
            f"safetensors, or convert it ({wish.page})."
        )
    return commit, sorted(files, key=lambda file: file.size_bytes)  # a refusal comes early


def _hub_file(entry: dict[str, Any]) -> HubFile:
    large = entry.get("lfs")
    size, hash_ = (large["size"], large["sha256"]) if large else (entry["size"], entry["blobId"])
    if type(size) is not int or size < 0 or not HASH.fullmatch(hash_):
        raise ValueError("a file without size or hash")
    return HubFile(entry["rfilename"], size, hash_)


def _check_kind(wish: _Repo, error: _Refusal) -> None:
    """Raise `LoadError` where something else than a model has this name."""
    if error.code not in ("", "RepoNotFound"):
        return
    for kind in ("dataset", "space"):
        with contextlib.suppress(httpx2.HTTPError):  # only a better message would be lost
            if _ask(f"api/{kind}s/{wish.id}").status_code == 200:
                raise LoadError(f"{wish.id} is a {kind}, not a model. Give a model's name.")


def _ask(path: str) -> httpx2.Response:
    return get_session().get(
        f"{constants.ENDPOINT}/{path}",
        headers=_headers(),
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
    )


# --- downloading


def _download_missing(wish: _Repo, commit: str, files: list[HubFile], report: Report) -> None:
    snapshot = wish.snapshot(commit)
    missing = [file for file in files if _size(snapshot / file.name) != file.size_bytes]
    _check_room(wish, missing)
    meter = _Meter(wish.id, report, files, missing)
    for file in missing:
        meter.begin(file)
        # The cache may hold it already: other commits share their unchanged files.
        if _size(wish.blob(file)) != file.size_bytes:
            _download(wish, commit, file, meter)
        _link(wish.blob(file), snapshot / file.name)
        meter.end()


def _check_room(wish: _Repo, missing: list[HubFile]) -> None:
    absent = [file for file in missing if _size(wish.blob(file)) != file.size_bytes]
    needed = sum(file.size_bytes - max(_size(wish.partial(file)), 0) for file in absent)
    existing = next(path for path in (wish.folder, *wish.folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise LoadError(
            f"{wish.id} needs {_shown(needed)} more, but the disk of the hub's cache has "
            f"{_shown(free)} left. Free some (`hf cache ls` shows what is there), or set HF_HOME "
            "to a folder on a larger disk."
        )


def _download(wish: _Repo, commit: str, file: HubFile, meter: _Meter) -> None:
    """Bring one file into the cache; another process that is at it is waited for."""
    blob, partial = wish.blob(file), wish.partial(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    wish.lock(file).parent.mkdir(parents=True, exist_ok=True)
    with _locked(wish.lock(file), waiting=lambda: meter.at(max(_size(partial), 0))):
        if _size(blob) == file.size_bytes:
            return
        if _size(partial) > file.size_bytes:
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


def _continue(wish: _Repo, commit: str, file: HubFile, out: BinaryIO, meter: _Meter) -> bool:
    """Download from where `out` ends; return whether the file is what was announced."""
    address = f"{constants.ENDPOINT}/{wish.id}/resolve/{commit}/{quote(file.name)}"
    patience = _Patience(wish, FILE_TRIES)
    digest, have = file.digest(), 0
    out.seek(0)
    for _ in range(-(-os.fstat(out.fileno()).st_size // BLOCK_BYTES)):
        block = out.read(BLOCK_BYTES)
        digest.update(block)
        have += len(block)
    while have < file.size_bytes:
        before = have
        headers = _headers() | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with get_session().stream(
                "GET", address, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                if response.status_code == 416:  # the file ends before what was announced
                    return False
                _check_answer(response)
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
        except (httpx2.HTTPError, _Refusal) as error:
            out.flush()
            if have - before >= ENOUGH_BYTES:
                patience = _Patience(wish, FILE_TRIES)
            patience.after(error)
    return digest.hexdigest() == file.hash


def _check_answer(response: httpx2.Response) -> None:
    """Raise `_Refusal` unless the answer is what was asked for."""
    if response.status_code not in (200, 206):
        asked = response.headers.get("Retry-After", "")
        raise _Refusal(
            status=response.status_code,
            code=response.headers.get("X-Error-Code", ""),
            wait_sec=float(asked[:9]) if asked.isdecimal() else 0.0,
        )


def _headers() -> dict[str, str]:
    """Return what goes with a request: who asks, and the token, if there is one."""
    # A packed file cannot be continued in its middle.
    headers = {"User-Agent": "gemma3vl", "Accept-Encoding": "identity"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token is None:
        return headers
    if not re.fullmatch(r"[!-~]+", token):
        raise LoadError(
            "The hub token on this machine holds characters that no token has. Correct HF_TOKEN, "
            "or run `hf auth login`."
        )
    return headers | {"Authorization": f"Bearer {token}"}


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


# --- what can go wrong


class _Patience:
    """Waits a little longer after each failure; ends in a plain error."""

    def __init__(self, wish: _Repo, tries: int) -> None:
        self._wish, self._tries, self._failures = wish, tries, 0

    def after(self, error: Exception) -> None:
        self._failures += 1
        wait = FIRST_WAIT_SEC * 2 ** (self._failures - 1)
        may_pass = True
        if isinstance(error, _Refusal):
            wait = max(wait, error.wait_sec)
            may_pass = error.status in (408, 429) or error.status >= 500
        if not may_pass or self._failures >= self._tries or wait > LONGEST_WAIT_SEC:
            raise _explained(self._wish, error, self._failures) from error
        logger.info("The hub failed (%s); again in %.0f s.", type(error).__name__, wait)
        time.sleep(wait)


def _explained(wish: _Repo, error: Exception, tries: int) -> LoadError:
    """Return what a person is told about an answer, or none, of the hub."""
    known = "Authorization" in _headers()
    if isinstance(error, _Refusal):
        return _explained_refusal(wish, error, tries, known)
    kept = "What has arrived is kept; run the same command again to continue."
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
        return HubError(
            f"The hub stopped sending {wish.id}: nothing came for {seconds} s, {tries} times. "
            f"{kept} (HF_HUB_DOWNLOAD_TIMEOUT sets the seconds.)"
        )
    if isinstance(error, httpx2.ReadError | httpx2.RemoteProtocolError):
        return HubError(f"The connection to the hub broke {tries} times ({wish.id}). {kept}")
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return HubError("HF_ENDPOINT is no address of a hub. Correct or unset it.")
    return HubError(
        f"The hub cannot be reached for {wish.id}. Check the network (or the proxy), and try "
        "again; without a network, load a folder that has the model."
    )


def _explained_refusal(wish: _Repo, error: _Refusal, tries: int, known: bool) -> LoadError:
    status, code = error.status, error.code
    if code == "RevisionNotFound":
        return LoadError(
            f"{wish.id} has no revision {wish.revision!r}. Leave it out for the newest; "
            f"{wish.page}/commits/main lists them."
        )
    if status == 429:
        advice = "" if known else " Requests with a token may be more: `hf auth login`."
        return HubError(
            f"The hub takes no more requests from here now (429). Wait a few minutes.{advice}"
        )
    if status >= 500 or status == 408:
        return HubError(
            f"The hub has trouble (error {status}, {tries} tries). Try again later; "
            "https://status.huggingface.co says more."
        )
    if status == 401 and known and code != "GatedRepo":
        return HubError(
            "The hub does not accept the token on this machine: it is wrong or has expired, or "
            f"{wish.id} does not exist. Check the name; run `hf auth login` (or correct HF_TOKEN)."
        )
    if code == "GatedRepo" and known and status != 401:
        return HubError(
            f"The licence of {wish.id} is not accepted by your account yet. Open {wish.page}, "
            "accept it, and try again."
        )
    if code == "GatedRepo":
        return HubError(
            f"{wish.id} asks for its licence to be accepted. Open {wish.page}, accept it, run "
            "`hf auth login`, and try again."
        )
    if status in (401, 404):
        return HubError(
            f"The hub has no model {wish.id}, or it is private. Check the name; for a private "
            "model, run `hf auth login` first."
        )
    if status == 403:
        return HubError(
            f"The token on this machine may not read {wish.id}. Let it read (gated) repositories "
            "at https://huggingface.co/settings/tokens, or run `hf auth login` with another."
        )
    return HubError(f"The hub refused {wish.id} (error {status}). Look at {wish.page}.")


def _no_hub() -> HubError:
    return HubError(
        "What answered is no hub: its list of files cannot be read. Check HF_ENDPOINT, the proxy, "
        "or whether the network wants you to log in."
    )


def _disk_error(wish: _Repo, error: OSError) -> LoadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LoadError(
            f"The disk of the hub's cache is full; {wish.id} is not complete. Free some space "
            "(`hf cache ls` shows what is there) and run the same command again to continue, or "
            "set HF_HOME to a folder on a larger disk."
        )
    reason = error.strerror or type(error).__name__
    return LoadError(
        f"The hub's cache cannot be written ({reason}). Set HF_HOME to a folder that can be."
    )


def _shown(bytes_: int) -> str:
    return f"{bytes_ / 1e9:,.1f} GB" if bytes_ >= 1e8 else f"{bytes_ / 1e6:,.1f} MB"
