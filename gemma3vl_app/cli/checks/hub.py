"""The Hugging Face hub: the token, offline mode, and (asked over the network) the licence.

The token itself is never shown and, without --online, never sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants

# Public there, but not re-exported in a way that mypy follows
# Public there, but not re-exported in a way that mypy follows
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

from gemma3vl_app.cli.checks.check import Check, shown_path
from gemma3vl_app.loading.hub_download import check_answer, request_headers
from gemma3vl_app.loading.hub_errors import Refusal

SECTION = "Hugging Face hub"
GATED = "google/gemma-3-4b-it"  # asked about in the name of all: see docs/hub.md
PAGE = f"https://huggingface.co/{GATED}"
LIMIT_SEC = 5.0
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
YES = {"1", "true", "yes", "on"}  # as huggingface_hub reads them


def endpoint(environment: Mapping[str, str]) -> list[Check]:
    """Say which other hub is asked, if any: its host only, since addresses can hold passwords."""
    address = environment.get("HF_ENDPOINT", "")
    if not address:
        return []
    try:
        parts = urlsplit(address)
        host = parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        host = None
    if host is None:
        message = "HF_ENDPOINT is no address of a hub."
        return [Check(SECTION, "endpoint", "broken", message, "unset HF_ENDPOINT")]
    return [Check(SECTION, "endpoint", "good", f"HF_ENDPOINT: {host} is asked for models")]


def offline(environment: Mapping[str, str]) -> list[Check]:
    """Warn where a variable forbids downloads."""
    name = next((n for n in OFFLINE if environment.get(n, "").lower() in YES), None)
    if name is None:
        return []
    message = f"{name} is set: nothing is downloaded, and only what is here can be loaded."
    return [Check(SECTION, "offline", "warning", message, f"unset {name}")]


def token(environment: Mapping[str, str], stored: Path) -> Check:
    """Look whether there is a token, in the environment or in the file that hf stores."""
    name = next((n for n in TOKENS if environment.get(n, "").strip()), None)
    secret, place, file = "", "", "the file that `hf auth login` stores"
    if name is not None:
        secret, place = environment[name].strip(), name
    else:
        try:
            secret, place = stored.read_text(encoding="utf-8").strip(), file
        except FileNotFoundError:
            pass
        except (OSError, ValueError):
            message = f"{shown_path(stored)} cannot be read."
            return Check(SECTION, "token", "broken", message, "hf auth login")
    if not secret:
        message = "none; Google's models need one, the demo does not."
        return Check(SECTION, "token", "warning", message, "hf auth login")
    if not re.fullmatch(r"[!-~]+", secret):
        message = f"The one in {place} holds characters that no token has."
        next_step = f"unset {name}" if name else "hf auth login"
        return Check(SECTION, "token", "broken", message, next_step)
    if environment.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in YES:
        message = f"found in {place}, but HF_HUB_DISABLE_IMPLICIT_TOKEN keeps it from being sent."
        return Check(SECTION, "token", "warning", message, "unset HF_HUB_DISABLE_IMPLICIT_TOKEN")
    return Check(SECTION, "token", "good", f"found in {place}")


def licence_unasked(*, has_token: bool, downloaded: bool) -> list[Check]:
    """Say what is known of the licence without asking; nothing, where there is no token."""
    if downloaded:
        return [Check(SECTION, "licence", "good", "accepted: a model of Google's is here")]
    if not has_token:
        return []
    message = "Whether it is accepted is not known here; the hub can be asked."
    return [Check(SECTION, "licence", "warning", message, "gemma3vl doctor --online")]


def licence_online(*, is_offline: bool) -> Check:
    """Ask the hub whether this machine's token may read Google's models; two short requests."""
    if is_offline:
        message = "Not asked: a variable forbids it (see offline)."
        return Check(SECTION, "licence", "warning", message, f"unset {' '.join(OFFLINE)}")
    try:
        commit = _get(f"api/models/{GATED}").json()["sha"]
        _get(f"{GATED}/resolve/{commit}/config.json")
    except Refusal as refusal:
        return _refused(refusal)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        message = f"The hub cannot be reached ({type(error).__name__}). Check network and proxy."
        return Check(SECTION, "licence", "broken", message, "gemma3vl doctor --online")
    except (ValueError, KeyError, TypeError):
        message = "What answered is no hub: check HF_ENDPOINT, the proxy, or a login page."
        return Check(SECTION, "licence", "broken", message, "gemma3vl doctor --online")
    return Check(SECTION, "licence", "good", f"accepted: {GATED} can be downloaded")


def _get(path: str) -> httpx2.Response:
    response = get_session().get(
        f"{constants.ENDPOINT}/{path}", headers=request_headers(), timeout=LIMIT_SEC
    )
    check_answer(response)
    return response


def _refused(refusal: Refusal) -> Check:
    """Return what a refusal means; the demo and what is here work all the same."""
    sent = "Authorization" in request_headers()
    if refusal.code == "GatedRepo" and not sent:
        message = f"{GATED} asks for its licence to be accepted ({PAGE}), and for a token."
        return Check(SECTION, "licence", "warning", message, "hf auth login")
    if refusal.code == "GatedRepo":
        message = f"The licence of {GATED} is not accepted by this token's account yet."
        return Check(SECTION, "licence", "warning", message, f"open {PAGE} and accept it")
    if refusal.status == 401 and sent:
        message = "The hub does not accept the token: it is wrong or has expired."
        return Check(SECTION, "token", "broken", message, "hf auth login")
    if refusal.status == 403:
        message = "The token may not read gated repositories; give it that right, or use another."
        return Check(SECTION, "token", "broken", message, "https://huggingface.co/settings/tokens")
    if refusal.status in (401, 404):
        message = f"This hub has no {GATED}. Check HF_ENDPOINT."
        return Check(SECTION, "licence", "warning", message, "gemma3vl doctor --online")
    message = f"The hub has trouble, or takes no more requests (error {refusal.status})."
    return Check(SECTION, "licence", "broken", message, "gemma3vl doctor --online")
