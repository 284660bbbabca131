"""`gemma3vl convert`: a model's weights written in another form.

`gemma3vl convert SOURCE TARGET` is short for `gemma3vl convert from SOURCE TARGET`: what is not the
name of a subcommand goes to `from`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.markup import escape
from rich.status import Status as Spinner
from typer.core import TyperGroup

from gemma3vl_app.cli import exit_codes
from gemma3vl_app.cli.completion import complete_model
from gemma3vl_app.cli.load import MODEL, Revision, describe, mistakes, spinner, stderr
from gemma3vl_app.conversion.formats import FORMATS, check_wishes, format_named
from gemma3vl_app.conversion.options import GGUF_TYPES, GgufType, Options, Precision
from gemma3vl_app.generation import Progress
from gemma3vl_app.plain import plain
from gemma3vl_app.planning.wishes import parse_bytes

DEFAULT = "from"
SOURCE = "A name of `gemma3vl models`, a hub id, a folder or a GGUF file."
FORMS = ", ".join(FORMATS)
TYPES = ", ".join(GGUF_TYPES)
GO_ON = "Stopped. What is written is kept: the same command goes on with it."


class WithDefault(TyperGroup):
    """A group whose command `from` takes whatever does not begin with a subcommand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command's name before arguments, and before `--help`."""
        if args and args[0] not in self.commands:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=WithDefault, no_args_is_help=True)


@app.callback()
def convert() -> None:
    """Write models in another form."""


@app.command(DEFAULT)
def from_(
    source: Annotated[
        str, typer.Argument(help=SOURCE, metavar="SOURCE", autocompletion=complete_model)
    ],
    target: Annotated[Path, typer.Argument(help="The folder to write.", metavar="TARGET")],
    to: Annotated[
        str,
        typer.Option(
            "--to", help=f"The form: {FORMS}.", metavar="KIND", autocompletion=lambda: [*FORMATS]
        ),
    ] = "hub",
    adapter: Annotated[
        Path | None,
        typer.Option(help="Fold this adapter in.", metavar="FOLDER"),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Round weights: stored, bf16 or fp32.", metavar="KIND")
    ] = "stored",
    shard_size: Annotated[
        str | None,
        typer.Option(
            help="The largest size of a file, 2GiB if not given; not for gguf and megatron.",
            metavar="SIZE",
        ),
    ] = None,
    gguf_type: Annotated[
        str, typer.Option(help=f"Numbers of a GGUF file: {TYPES}.", metavar="KIND")
    ] = "bf16",
    check: Annotated[
        bool,
        typer.Option("--check", help="Read all back, and compare it with the source bit by bit."),
    ] = False,
    revision: Revision = None,
) -> None:
    """Write a model into a new folder, in another form.

    What the source is, is found out from its files and shown. Stopped half-way, the same command
    goes on where it was. The word `from` may be left out. For adapters there is also `gemma3vl
    convert merge`.

    Example: gemma3vl convert from 4b-it my-4b --to nf4
    """
    with mistakes():
        shard_bytes = None if shard_size is None else parse_bytes(shard_size)
        options = Options(
            precision=cast(Precision, precision),
            shard_bytes=shard_bytes,
            gguf_type=cast(GgufType, gguf_type),
        )
        check_wishes(format_named(to), options, has_adapter=adapter is not None, check=check)
    _run(
        source,
        target,
        "Converting",
        to=to,
        adapter=adapter,
        precision=precision,
        shard_bytes=shard_bytes,
        gguf_type=gguf_type,
        check=check,
        revision=revision,
    )


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
    _run(base, out, "Merging", to="merged", adapter=adapter, revision=revision)


def _run(source: str, target: Path, doing: str, **options: Any) -> None:
    """Convert, with progress on stderr; the folder's name goes to stdout."""
    try:
        with spinner(doing) as status:
            from gemma3vl_app.conversion.converting import convert as write

            folder = write(
                source,
                target,
                progress=partial(_show, status),
                **options,
            )
    except KeyboardInterrupt:
        stderr.print(GO_ON)
        raise typer.Exit(exit_codes.INTERRUPTED) from None
    typer.echo(str(folder))


def _show(status: Spinner, step: Progress) -> None:
    if step.stage == "detect":  # stays to be read, also in logs
        stderr.print(escape(plain(step.message)), soft_wrap=True)
    else:
        status.update(escape(describe(step)))
