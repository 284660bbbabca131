"""Stand-ins for tests, ours and yours: a scripted backend, and a tiny random Gemma 3 on disk.

Each name is fetched when it is first used: `ScriptedBackend` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma3vl_app.testing.scripted import ScriptedBackend as ScriptedBackend
    from gemma3vl_app.testing.tiny import tiny_checkpoint as tiny_checkpoint

_CONTENTS = {"ScriptedBackend": "scripted", "tiny_checkpoint": "tiny"}


def __getattr__(name: str) -> object:
    """Fetch a name of the table of contents from its module."""
    if name not in _CONTENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_CONTENTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_CONTENTS)
