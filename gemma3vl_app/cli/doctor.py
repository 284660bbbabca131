"""`gemma3vl doctor`: is all well here, and if not, what to type next."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from gemma3vl_app.cli import exit_codes, load
from gemma3vl_app.plain import plain

if TYPE_CHECKING:
    from gemma3vl_app.cli.checks.check import Check

COLOURS = {"good": "green", "warning": "yellow", "broken": "bold red"}
STATE_WIDTH = max(map(len, COLOURS))
NAME_WIDTH = len("extra: notebook")


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Ask the hub about the licence, with your token.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look whether all is well on this machine, and say what to type where it is not.

    Each line is good, a warning or broken. Exit code 3 means that something is broken. It loads no
    model and, without --online, sends nothing.

    Example: gemma3vl doctor --online
    """
    with load.spinner("Looking around"):
        from gemma3vl_app.cli.checks.check import take
        from gemma3vl_app.cli.checks.this_machine import looks

        found = take(looks(online=online))
    if as_json:
        typer.echo(json.dumps([_row(check) for check in found], ensure_ascii=False))
    else:
        _show(found)
    if any(check.state == "broken" for check in found):
        raise typer.Exit(exit_codes.INCOMPLETE)


def _row(check: Check) -> dict[str, str]:
    return {
        "section": check.section,
        "name": check.name,
        "state": check.state,
        "message": check.message,
        "next": check.next_step,
    }


def _show(found: Sequence[Check]) -> None:
    """Print the report, wrapped on a terminal; in a pipe each line stays whole, for `grep`."""
    out = Console(highlight=False)
    for section, checks in groupby(found, key=lambda check: check.section):
        out.print(Text(section, style="bold"))
        for check in checks:
            _show_one(out, check)
        out.print()
    out.print(Text(_verdict(found)), soft_wrap=True)


def _show_one(out: Console, check: Check) -> None:
    indent = 2 + STATE_WIDTH + 2 + NAME_WIDTH + 2
    message, next_step = plain(check.message), plain(check.next_step)
    lines = textwrap.wrap(message, max(out.width - indent, 20)) if out.is_terminal else [message]
    head = Text("  ").append(f"{check.state:{STATE_WIDTH}}", style=COLOURS[check.state])
    head.append(f"  {check.name:{NAME_WIDTH}}  {lines[0]}")
    out.print(head, soft_wrap=True)
    for line in lines[1:]:
        out.print(Text(" " * indent + line), soft_wrap=True)
    if next_step:  # never wrapped: it is there to be copied
        out.print(Text(" " * (2 + STATE_WIDTH + 2) + f"next: {next_step}"), soft_wrap=True)


def _verdict(found: Sequence[Check]) -> str:
    warnings = sum(check.state == "warning" for check in found)
    broken = sum(check.state == "broken" for check in found)
    told = f"{warnings} warning{'s' * (warnings != 1)}" if warnings else "no warnings"
    return f"{broken or 'Nothing'} broken, {told}."
