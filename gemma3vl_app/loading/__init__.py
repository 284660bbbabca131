"""From a name or a folder to a model in memory: `load_model(source) -> LoadedModel`."""

from gemma3vl_app.loading.base_270m import base_270m_folder
from gemma3vl_app.loading.loader import LoadedModel, load_model

__all__ = ["LoadedModel", "base_270m_folder", "load_model"]
