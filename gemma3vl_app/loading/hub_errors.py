"""What can go wrong between here and the hub: when to try again, and what a person is told."""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import dataclass

import httpx2  # what huggingface_hub talks through; its errors come from here
from huggingface_hub import constants, get_token

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.hub_cache import Repo

FIRST_WAIT_SEC = 1.0  # doubled after each failure
LONGEST_WAIT_SEC = 30.0  # that the hub may ask for before it is an error

logger = logging.getLogger(__name__)


class HubError(LoadError):
    """The hub does not give a model, for now or to this person; a complete copy would still do."""


@dataclass
class Refusal(Exception):
    """The hub answered something else than what was asked for."""

    status: int
    code: str  # the hub's own word for it: GatedRepo, RepoNotFound, RevisionNotFound
    wait_sec: float


class Patience:
    """Waits a little longer after each failure; ends in a plain error."""

    def __init__(self, wish: Repo, tries: int) -> None:
        self._wish, self._tries, self._failures = wish, tries, 0

    def after(self, error: Exception) -> None:
        """Wait for the next try, or raise `LoadError` where there should be none."""
        self._failures += 1
        wait = FIRST_WAIT_SEC * 2 ** (self._failures - 1)
        may_pass = True
        if isinstance(error, Refusal):
            wait = max(wait, error.wait_sec)
            may_pass = error.status in (408, 429) or error.status >= 500
        if not may_pass or self._failures >= self._tries or wait > LONGEST_WAIT_SEC:
            raise _explained(self._wish, error, self._failures) from error
        logger.info("The hub failed (%s); again in %.0f s.", type(error).__name__, wait)
        time.sleep(wait)


def _explained(wish: Repo, error: Exception, tries: int) -> LoadError:
    """Return what a person is told about an answer, or none, of the hub."""
    known = token() is not None
    if isinstance(error, Refusal):
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


def _explained_refusal(wish: Repo, error: Refusal, tries: int, known: bool) -> LoadError:
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


def no_hub() -> HubError:
    """Return what a person is told about an answer that no hub gives."""
    return HubError(
        "What answered is no hub: its list of files cannot be read. Check HF_ENDPOINT, the proxy, "
        "or whether the network wants you to log in."
    )


def disk_error(wish: Repo, error: OSError) -> LoadError:
    """Return what a person is told when the disk refuses."""
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


def token() -> str | None:
    """Return the token that requests carry, or None."""
    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
