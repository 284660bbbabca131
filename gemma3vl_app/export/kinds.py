"""The kinds of files a chat is exported to, by suffix, and the one function that does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.export.html_page import html_page
from gemma3vl_app.export.markdown import markdown
from gemma3vl_app.export.notebook import notebook
from gemma3vl_app.export.training import training_lines
from gemma3vl_app.export.write import Document, Exported, pictures_folder, write
from gemma3vl_app.transcript import ROOT, Transcript

Kind = Callable[[Transcript, str, bool], Document]

# Each takes the transcript, the name of the picture folder, and whether to show all branches.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {".html": html_page, ".md": markdown, ".ipynb": notebook, ".jsonl": training_lines}
)


def export(
    transcript: Transcript, path: str | Path, *, branches: bool = False, overwrite: bool = False
) -> Exported:
    """Write `transcript` to `path`, as the kind of file that its suffix says; return what is there.

    `.html` is one file; `.md`, `.ipynb` and `.jsonl` have their pictures beside them, in
    `<name>-pictures/`. What is shown is where the chat stands; with `branches`, also the others.
    Raises `ConversationError` for another suffix, when there is nothing to write, and when the file
    or its folder exists, unless `overwrite`.
    """
    target = Path(path)
    kind = check_suffix(target)
    if not transcript.turns:
        raise ConversationError("The chat is empty, so there is nothing to export.")
    if transcript.head == ROOT and not branches:
        raise ConversationError(
            "The chat stands at its beginning, where there is nothing to export. "
            "Export its branches, too, with branches=True, or step into one first."
        )
    document = kind(transcript, pictures_folder(target).name, branches)
    return write(target, document, overwrite=overwrite)


def check_suffix(path: Path) -> Kind:
    """Return the kind of file that `path` names; raises `ConversationError` for another suffix."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise ConversationError(
            f"A chat cannot be exported to {path.name!r}. "
            "Choose a name that ends in .html, .md, .ipynb or .jsonl."
        )
    return kind
