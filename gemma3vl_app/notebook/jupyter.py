"""What IPython and Jupyter are asked for; neither is needed until something is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from gemma3vl_app.errors import Gemma3VLError
from gemma3vl_app.notebook.shown import Shown


def in_jupyter() -> bool:
    """Return whether a kernel runs this: Jupyter, VS Code or Colab, not a terminal."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython(), "kernel") if ipython else False


def needed(name: str) -> ModuleType:
    """Return a module of the extra `widgets`, or say how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise Gemma3VLError(
            f"This needs {name}, which is not installed: pip install 'gemma3vl-app[widgets]'."
        ) from error


def output(first: Shown) -> Callable[[Shown], None]:
    """Show `first` below the cell; returns what replaces it in place."""
    handle: Any = needed("IPython.display").display(first.bundle(), raw=True, display_id=True)
    return lambda each: handle.update(each.bundle(), raw=True)
