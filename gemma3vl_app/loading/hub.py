"""Models of the Hugging Face hub: downloaded once into the hub's cache, checked, offline after.

Knows repositories, commits and which files belong to a model; how they come, `hub_download` knows.
docs/hub.md lists the messages.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound, HFValidationError

# Public there, but not re-exported in a way that mypy follows
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Report
from gemma3vl_app.loading.cache import CachedFolder
from gemma3vl_app.loading.hub_cache import HubFile, Repo, file_size, note, read_text
from gemma3vl_app.loading.hub_download import ask, check_answer, download_missing
from gemma3vl_app.loading.hub_errors import HubError, Patience, Refusal, disk_error, no_hub

COMMIT = re.compile(r"[0-9a-f]{40}")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's SHA-1 of a small file, SHA-256 of a large
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
LONGEST_REVISION = 200
LISTING_TRIES = 3

# All that a model is loaded from; nothing that could run code is ever fetched.
WANTED = re.compile(
    r"[\w.-]+\.safetensors|model\.safetensors\.index\.json|(adapter_|generation_|preprocessor_"
    r"|processor_|tokenizer_)?config\.json|tokenizer\.json|chat_template\.(json|jinja)"
    r"|(special_tokens_map|added_tokens)\.json"
)
NOT_READ = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")

logger = logging.getLogger(__name__)


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
        note(wish.listing(commit), json.dumps([asdict(file) for file in files]))
        download_missing(wish, commit, files, progress or (lambda step: None))
        note(wish.ref, commit)  # last: until then, offline means the older, complete commit
    except HubError as error:
        if local is None:
            raise
        logger.warning("%s The copy on this machine is used.", error)
        return local
    except OSError as error:
        raise disk_error(wish, error) from error
    return wish.snapshot(commit)


def hub_revision(folder: Path) -> str | None:
    """Return the commit that a snapshot folder of the hub's cache holds; None for other folders."""
    folder = folder.absolute()
    inside = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    return folder.name if inside and COMMIT.fullmatch(folder.name) else None


def downloaded_models() -> list[CachedFolder]:
    """Return the Gemma 3 models in the hub's cache, most recently used first."""
    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, ValueError, OSError):  # none there yet, or not to be read
        return []
    found = [
        CachedFolder(repo.repo_id, repo.size_on_disk, repo.last_accessed)
        for repo in repos
        if repo.repo_type == "model" and "gemma-3" in repo.repo_id.lower()
    ]
    return sorted(found, key=lambda folder: folder.used, reverse=True)


def _checked(repo: str, revision: str | None) -> Repo:
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
    return Repo(repo, revision)


# --- what is on this machine ---


def _complete_snapshot(wish: Repo) -> Path | None:
    """Return the snapshot that the revision last meant, if nothing of it is missing."""
    commit = wish.revision
    if not COMMIT.fullmatch(commit):
        commit = read_text(wish.ref).strip()
    if not COMMIT.fullmatch(commit):
        return None
    snapshot = wish.snapshot(commit)
    try:
        listed = [HubFile(**entry) for entry in json.loads(read_text(wish.listing(commit)))]
        known = {snapshot / file.name: file.size_bytes for file in listed}
    except (ValueError, TypeError):
        known = {}
    complete = all(file_size(path) == size for path, size in known.items())
    return snapshot if complete and (known or _looks_complete(snapshot)) else None


def _looks_complete(snapshot: Path) -> bool:
    """Whether a snapshot that another tool downloaded has all that a model or an adapter needs."""
    if (snapshot / "adapter_model.safetensors").is_file():
        return (snapshot / "adapter_config.json").is_file()
    shards = ["model.safetensors"]
    if index := read_text(snapshot / "model.safetensors.index.json"):
        try:
            shards = [str(file) for file in json.loads(index)["weight_map"].values()]
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
    return all((snapshot / file).is_file() for file in {"config.json", "tokenizer.json", *shards})


# --- what the hub has ---


def _list_files(wish: Repo, tries: int) -> tuple[str, list[HubFile]]:
    """Return the commit that the revision means, and its files that a model is loaded from.

    Not by `HfApi`: its requests bring others along that tell the hub which tools run here.
    """
    path = f"api/models/{wish.id}/revision/{quote(wish.revision, safe='')}?blobs=true"
    patience = Patience(wish, tries)
    while True:
        try:
            response = ask(path)
            check_answer(response)
            break
        except (httpx2.HTTPError, httpx2.InvalidURL, Refusal) as error:
            if isinstance(error, Refusal) and error.status in (401, 404):
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
        raise no_hub() from error
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


def _check_kind(wish: Repo, error: Refusal) -> None:
    """Raise `LoadError` where something else than a model has this name."""
    if error.code not in ("", "RepoNotFound"):
        return
    for kind in ("dataset", "space"):
        with contextlib.suppress(httpx2.HTTPError):  # only a better message would be lost
            if ask(f"api/{kind}s/{wish.id}").status_code == 200:
                raise LoadError(f"{wish.id} is a {kind}, not a model. Give a model's name.")
