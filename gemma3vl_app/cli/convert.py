"""`gemma3vl convert`: weights written in another form; `merge` folds an adapter into its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from gemma3vl_app.cli.completion import complete_model
from gemma3vl_app.cli.load import MODEL, Revision, describe, spinner

app = typer.Typer(no_args_is_help=True)


@app.callback()
def convert() -> None:
    """Write models in another form."""


@app.command()
def merge(
    adapter: Annotated[
        Path,
        typer.Argument(help="The adapter's folder, as fine-tuning left it.", metavar="ADAPTER"),
    ],
    base: Annotated[
        str, typer.Option("--base", help=MODEL, metavar="MODEL", autocompletion=complete_model)
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.", metavar="FOLDER")],
    revision: Revision = None,
) -> None:
    """Fold an adapter into its model, and write the sum as a model of its own.

    The folder has the layout of Google's on the hub, and loads wherever they do.

    Example: gemma3vl convert merge runs/finetune/adapter --base 4b-it --out my-4b
    """
    with spinner("Merging") as status:
        from gemma3vl_app.finetune.merge import merge as merge_adapter

        folder = merge_adapter(
            base,
            adapter,
            out,
            revision=revision,
            progress=lambda step: status.update(escape(describe(step))),
        )
    typer.echo(str(folder))
