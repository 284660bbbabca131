"""From a name or a folder to a model in memory: `load_model(source) -> LoadedModel`.

Names are fetched when first used: whoever only looks into the caches does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma3vl_app.loading.base_270m import base_270m_folder
    from gemma3vl_app.loading.loader import LoadedModel, load_model

__all__ = ["LoadedModel", "base_270m_folder", "load_model"]
_HOMES = {"LoadedModel": "loader", "base_270m_folder": "base_270m", "load_model": "loader"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
