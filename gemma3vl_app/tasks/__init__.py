"""Tasks with a prompt of their own: caption, answer, read text, compare, extract.

Each takes a backend and pictures, asks at temperature zero, and returns a typed result. Every name
is fetched when it is first used, so that the import stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma3vl_app.tasks.ask import answer as answer
    from gemma3vl_app.tasks.ask import caption as caption
    from gemma3vl_app.tasks.ask import compare as compare
    from gemma3vl_app.tasks.extraction import extract as extract
    from gemma3vl_app.tasks.reading import Reader as Reader
    from gemma3vl_app.tasks.reading import read_text as read_text
    from gemma3vl_app.tasks.requests import TaskOptions as TaskOptions
    from gemma3vl_app.tasks.requests import TaskRequest as TaskRequest
    from gemma3vl_app.tasks.results import Caption as Caption
    from gemma3vl_app.tasks.results import Comparison as Comparison
    from gemma3vl_app.tasks.results import Extraction as Extraction
    from gemma3vl_app.tasks.results import PageReading as PageReading
    from gemma3vl_app.tasks.results import Reading as Reading
    from gemma3vl_app.tasks.results import Reply as Reply

_CONTENTS = {
    "caption": "ask",
    "answer": "ask",
    "compare": "ask",
    "read_text": "reading",
    "Reader": "reading",
    "extract": "extraction",
    "TaskOptions": "requests",
    "TaskRequest": "requests",
    "Caption": "results",
    "Reply": "results",
    "Comparison": "results",
    "Extraction": "results",
    "PageReading": "results",
    "Reading": "results",
}


def __getattr__(name: str) -> object:
    """Fetch a name of the table of contents from its module."""
    if name not in _CONTENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_CONTENTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_CONTENTS)
