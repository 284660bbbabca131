"""A Hugging Face Space: which model its machine can hold, and a page that says so where none loads.

`app.py` calls `serve_space` when it finds itself on a Space. There the front door, and whoever may
come in, are Hugging Face's; the disk forgets everything with the next restart.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from gemma3vl_app import hardware
from gemma3vl_app.backends.borrowed import BorrowedBackend, Compute
from gemma3vl_app.backends.local import LocalBackend, load
from gemma3vl_app.errors import Gemma3VLError
from gemma3vl_app.hardware import Machine
from gemma3vl_app.messages import Conversation
from gemma3vl_app.planning import plan
from gemma3vl_app.server import DEFAULT_PORT, launch, serve

LARGEST_FIRST = ("27b-it", "12b-it", "4b-it")
ZERO_GPU_MODEL = "4b-it"
MOVING_SEC, LONGEST_LOAN_SEC = 20, 120  # of the model to the GPU; estimates, not measured
SLOWEST_TOKENS_PER_SEC = 20  # an estimate, not measured
Borrow = Callable[..., Callable[[Compute], Compute]]
_log = logging.getLogger(__name__)


def choose_model(
    environ: Mapping[str, str], *, has_gpu: bool, fits: Callable[[str], bool]
) -> tuple[str, str]:
    """Return which model to load, and why: the one that is asked for, or the largest that fits."""
    if asked := environ.get("GEMMA3VL_MODEL"):
        return asked, "GEMMA3VL_MODEL asks for it."
    if not has_gpu:
        return "demo", "Without a GPU the real models would take minutes for an answer."
    for name in LARGEST_FIRST:
        if fits(name):
            return name, "It is the largest that fits on this machine's GPUs."
    return "demo", "None of the real models fits on this machine's GPUs."


def serve_space(environ: Mapping[str, str]) -> None:
    """Load what fits and serve the page on the port that Spaces look at, until interrupted."""
    port = int(environ.get("PORT", DEFAULT_PORT))
    machine = hardware.detect_without_torch()
    name, reason = choose_model(
        environ, has_gpu=bool(machine.gpus), fits=lambda name: fits_on_gpus(name, machine)
    )
    _log.warning("Loading %s. %s", name, reason)
    try:
        backend: LocalBackend = load(name)
    except Gemma3VLError as error:
        _serve_explanation(name, str(error), port)
        return
    with backend:
        serve(backend, host="0.0.0.0", port=port, no_auth=True)


def serve_zero_gpu(environ: Mapping[str, str], borrow: Borrow, *, device: str = "cuda") -> None:
    """Serve the page with a model that borrows a GPU for each answer, until interrupted.

    `borrow` is `spaces.GPU`. Nobody knows here which GPU it is going to be: the model is
    GEMMA3VL_MODEL, or one that is small enough to be moved to it quickly.
    """
    port = int(environ.get("PORT", DEFAULT_PORT))
    name = environ.get("GEMMA3VL_MODEL", ZERO_GPU_MODEL)
    _log.warning("Loading %s, which borrows a GPU for each answer.", name)
    try:
        # What is fast on a processor is not what the GPU is to compute with.
        local = load(name, weights="bf16", device_map={"": "cpu"}, fast_paths=False)
    except Gemma3VLError as error:
        _serve_explanation(name, str(error), port)
        return
    with BorrowedBackend(local, borrow(duration=_seconds_of), device=device) as backend:
        launch(backend, host="0.0.0.0", port=port)


def _seconds_of(conversation: Conversation, options: Mapping[str, Any]) -> int:
    """Say for how long a GPU is needed at most: who asks for less waits less."""
    return min(
        LONGEST_LOAN_SEC, MOVING_SEC + int(options["max_new_tokens"]) // SLOWEST_TOKENS_PER_SEC
    )


def fits_on_gpus(name: str, machine: Machine) -> bool:
    """Return whether a model of the catalog can lie on GPUs alone, quantised if need be."""
    found = plan(name, machine=machine)
    return found.fits and all(place.startswith("cuda") for place in found.device_map.values())


def explanation(name: str, error: str) -> str:
    """Return a page of HTML that says what the Space's owner has to do."""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>
<body style="font: 1rem/1.6 system-ui; max-width: 40rem; margin: 4rem auto; padding: 0 1rem">
<h1>{html.escape(name)} could not be loaded</h1>
<p style="white-space: pre-wrap">{html.escape(error)}</p>
<p>If this Space is yours: Google's models ask everybody to accept their licence. Accept it on the
model's page with your account, put an access token into the Space's settings as the secret
<code>HF_TOKEN</code>, and restart it. Or set the variable <code>GEMMA3VL_MODEL</code> to
<code>demo</code>, which needs neither.</p>
</body></html>"""


def _serve_explanation(name: str, error: str, port: int) -> None:
    """Serve a page that says why there is no model; `/healthz` says so, too."""
    _log.error("%s could not be loaded: %s", name, error)
    app = FastAPI(title="gemma3vl_app", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz", status_code=503)
    def healthz() -> dict[str, str]:
        return {"status": "no model"}

    @app.get("/{path:path}", status_code=503)
    def page(path: str) -> HTMLResponse:
        return HTMLResponse(explanation(name, error), status_code=503)

    uvicorn.run(app, host="0.0.0.0", port=port, log_level="warning")
