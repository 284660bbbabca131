"""`gemma3vl export`: a saved chat as a page, as Markdown, as a notebook or as training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemma3vl_app.cli.load import spinner, stderr
from gemma3vl_app.plain import plain


def export(
    file: Annotated[Path, typer.Argument(help="A saved chat.", metavar="FILE")],
    to: Annotated[
        Path,
        typer.Option(
            help="The file to write, by its ending: .html (one page, pictures inside), .md, .ipynb "
            "(asks it all again) or .jsonl (training data).",
            metavar="FILE",
        ),
    ],
    branches: Annotated[
        bool, typer.Option("--branches", help="Show the versions that were not chosen, too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier export.")] = False,
) -> None:
    """Write a saved chat as a page, as Markdown, as a notebook or as training data.

    Example: gemma3vl export holiday.chat.zip --to holiday.html
    """
    with spinner("Exporting"):
        from gemma3vl_app.conversation_file import read_chat
        from gemma3vl_app.export import check_suffix
        from gemma3vl_app.export import export as write_export

        check_suffix(to)  # before a large file is read
        exported = write_export(read_chat(file), to, branches=branches, overwrite=force)
    line = f"Wrote {to}"
    if exported.folder is not None:
        count = exported.pictures
        line += f" and {count:,} picture{'' if count == 1 else 's'} in {exported.folder}"
    for text in (f"{line}.", *exported.notes):
        stderr.print(plain(text), markup=False, soft_wrap=True)
