"""What gradio does by itself, beyond serving a page: all that can be set for the whole process.

It tells nobody anything, fetches nothing, counts nobody's questions; and it does no work that
nobody sees the result of. docs/performance.md says what that work costs.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import gradio as gr
import gradio.processing_utils
import gradio.routes
import gradio.state_holder
import gradio.utils
from gradio.state_holder import SessionState

from gemma3vl_app.webui.upload_folder import new_folder

_NEVER = str(1 << 62)
_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Of each answer gradio notes who asked for it, and adds all notes up with pandas at its end,
    # for a monitoring page that is off here.
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": _NEVER,
}


def keep_gradio_quiet() -> Path:
    """Switch off what this page has no use for; return the private folder of uploads.

    To be called before a page is built, since gradio reads most of it from the environment then.
    The folder is new for every process, readable by this user alone, gone when the process ends or,
    where it was killed, with the next start. GRADIO_TEMP_DIR names another one, which stays.
    """
    os.environ |= _ENVIRONMENT
    _fetch_nothing()
    _skip_needless_work()
    if "GRADIO_TEMP_DIR" not in os.environ:
        os.environ["GRADIO_TEMP_DIR"] = str(new_folder())
    return Path(os.environ["GRADIO_TEMP_DIR"])


def _fetch_nothing() -> None:
    """Take from gradio what fetches the addresses that a browser names in place of files."""

    async def refuse(*_: object, **__: object) -> str:
        return refuse_at_once()

    def refuse_at_once(*_: object, **__: object) -> str:
        raise gr.Error(
            "Addresses are not fetched here: send the file itself.", print_exception=False
        )

    gradio.processing_utils.async_ssrf_protected_download = refuse
    gradio.processing_utils.ssrf_protected_download = refuse_at_once
    gradio.processing_utils.save_url_to_cache = refuse_at_once
    vars(gradio.routes)["secure_url_stream_response"] = refuse


def _skip_needless_work() -> None:
    """Take from gradio what it works out for plots and for links to a state: there are none here.

    For plots it looks for matplotlib, where that is missing in all folders and twice at every step
    of every answer. For such links it describes all components anew for everybody who comes, and
    nobody else is served meanwhile.
    """
    vars(gradio.utils)["MatplotlibBackendMananger"] = contextlib.nullcontext
    vars(gradio.state_holder)["SessionState"] = _LightSession


class _LightSession(SessionState):
    """What gradio remembers of somebody who has come: components are described once they change."""

    def __init__(self, blocks: gr.Blocks) -> None:
        undescribed = SimpleNamespace(default_config=blocks.default_config, blocks=())
        super().__init__(cast(gr.Blocks, undescribed))
