"""`load`: a model in this process, or one that a server answers with, by what the source says.

The one place that knows both; torch is imported only for a model that is loaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma3vl_app.addresses import is_address, parse_servers
from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress

if TYPE_CHECKING:
    from gemma3vl_app.engine.engine import EngineLimits


def load(
    source: str | Path | Sequence[str],
    *,
    weights: str = "auto",
    device_map: str | Mapping[str, str] = "auto",
    max_memory: Mapping[str, str | int] | None = None,
    context_tokens: int | None = None,
    revision: str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    progress: Callable[[Progress], None] | None = None,
    disk_cache: str | int | None = None,
    limits: EngineLimits | None = None,
    fast_paths: bool = True,
    speculation: str = "auto",
    draft: str | Path | None = None,
    api_key: str | None = None,
) -> Backend:
    """Load a model, or take up one that a server has, and return the backend that answers with it.

    `source` is a name that the catalog knows ("demo", "4b-it"), a hub id, a checkpoint folder, a
    GGUF file, or the address of a server that speaks OpenAI's protocol ("http://host:8000/v1",
    several in a list or with commas, "#NAME" behind one to choose its model).

    For a model that is loaded here: `revision` is a branch, tag or commit of the hub. `weights` is
    "auto", "bf16", "fp32", "w16", "int8", "nf4" or "int4"; `device_map`, `max_memory`,
    `context_tokens` and `fast_paths` are wishes to the planner, see `plan`. `adapters` are peft
    adapters' folders by name. `disk_cache`, a size such as "4GiB", lets a follow-up go on from what
    was computed even after a restart. `speculation` "auto" guesses tokens ahead where that is
    faster, "off" never does; `draft` is a small text model that guesses better.

    For a server: `api_key` is its key, else that of the environment variable GEMMA3VL_REMOTE_KEY;
    `context_tokens` its context, where it does not state one. See docs/remote.md.

    Raises `LoadError` with the next thing to do.
    """
    here = {
        "weights": (weights, "auto"),
        "device_map": (device_map, "auto"),
        "max_memory": (max_memory, None),
        "revision": (revision, None),
        "adapters": (adapters, None),
        "disk_cache": (disk_cache, None),
        "limits": (limits, None),
        "fast_paths": (fast_paths, True),
        "speculation": (speculation, "auto"),
        "draft": (draft, None),
    }
    wishes: dict[str, Any] = {
        name: value for name, (value, usual) in here.items() if value != usual
    }
    if isinstance(source, Path) or (isinstance(source, str) and not is_address(source)):
        if api_key is not None:
            raise LoadError("api_key is for a server's model; this one is loaded here.")
        from gemma3vl_app.backends.local import load as load_here

        more = {"context_tokens": context_tokens, "progress": progress}
        wishes |= {name: value for name, value in more.items() if value is not None}
        return load_here(source, **wishes)
    text = source if isinstance(source, str) else ",".join(source)
    hosts = parse_servers(text).hosts
    if wishes:
        raise LoadError(
            f"{', '.join(wishes)}: the server at {hosts} has placed its model itself. "
            "Leave that out, and say it where the server is started."
        )
    from gemma3vl_app.backends.remote import load_remote

    return load_remote(text, api_key=api_key, context_tokens=context_tokens, progress=progress)
