"""`gemma3vl cache`: what converted and quantised models take on disk, and how to get it back."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Show or clean what this program keeps on disk.", no_args_is_help=True)


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List converted and quantised models, and the models downloaded from the hub.

    Of conversations that --disk-cache kept there is one line, `conversations`.

    Example: gemma3vl cache list
    """
    from gemma3vl_app.loading.cache import cache_root, cached_folders
    from gemma3vl_app.loading.hub import downloaded_models

    own, downloads = cached_folders(), downloaded_models()
    if as_json:
        rows = [
            {"kind": kind, "name": each.name, "bytes": each.bytes, "used": each.used}
            for kind, found in (("converted", own), ("downloaded", downloads))
            for each in found
        ]
        typer.echo(json.dumps(rows))
        return
    table = Table("converted here", "GiB", "last used", title=f"{cache_root()}")
    for each in own:
        table.add_row(each.name, f"{each.bytes / 2**30:.2f}", _day(each.used))
    table.add_section()
    for each in downloads:
        table.add_row(f"{each.name} (downloaded)", f"{each.bytes / 2**30:.2f}", _day(each.used))
    Console().print(table)
    typer.echo(
        "`gemma3vl cache clean NAME` deletes one that was converted here, `--all` each of them; "
        "they are made again when needed. Downloads: `hf cache rm model/NAME`."
    )


@app.command()
def clean(
    name: Annotated[
        str | None, typer.Argument(help="A name that `cache list` shows.", metavar="NAME")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Delete all that was converted or kept here.")
    ] = False,
) -> None:
    """Delete converted and quantised models; they are made again when they are needed.

    `conversations` deletes what --disk-cache kept of them: no chat is lost, only time.

    Example: gemma3vl cache clean --all
    """
    from gemma3vl_app.loading.cache import cached_folders, remove_cached

    if (name is None) != everything:
        raise typer.BadParameter("Say which: a name that `gemma3vl cache list` shows, or --all.")
    names = [each.name for each in cached_folders()] if everything else [str(name)]
    freed = sum(remove_cached(each) for each in names)
    typer.echo(f"Deleted {len(names)}, {freed / 2**30:.2f} GiB.")


def _day(epoch_sec: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(epoch_sec))
