"""`gemma3vl replay`: write a saved chat again and say what differs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma3vl_app import catalog
from gemma3vl_app.cli import load
from gemma3vl_app.cli.completion import complete_model
from gemma3vl_app.cli.exit_codes import INCOMPLETE
from gemma3vl_app.cli.messages import in_options
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.plain import plain
from gemma3vl_app.wording import counted

if TYPE_CHECKING:
    from gemma3vl_app.replay import Replay, Replayed
    from gemma3vl_app.transcript import ModelIdentity, Transcript

COMMIT = re.compile(r"[0-9a-f]{40}")


def replay(
    file: Annotated[Path, typer.Argument(help="A chat that was saved.", metavar="FILE")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Where the model is now; by default, what wrote the chat.",
            autocompletion=complete_model,
            metavar="MODEL",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    weights: Annotated[
        str | None, typer.Option(help="Another precision than the recorded one.", metavar="KIND")
    ] = None,
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    context_tokens: load.ContextTokens = None,
    revision: load.Revision = None,
    adapter: load.Adapters = None,
    draft: load.Draft = None,
) -> None:
    """Write a saved chat again, every branch of it, and say what differs and why it may.

    Greedy and seeded answers come out token for token where the model, its precision and the
    machine are the same. Exit code 3 where an answer differs or cannot be tried.

    Example: gemma3vl replay clocks.chat.zip
    """
    wishes = load.read_wishes(
        weights or "auto", device_map, max_memory, context_tokens, revision, adapter, draft
    )
    with load.spinner("Opening the chat"):
        from gemma3vl_app.conversation_file import open_saved, software_here
        from gemma3vl_app.replay import replay as write_again

        saved = open_saved(file)
    wrote = _who_wrote(saved.transcript, file.name)
    source = model or _source_of(wrote)
    if weights is None and wrote.weights:
        wishes = dataclasses.replace(wishes, weights=wrote.weights)
    if revision is None and source != model and COMMIT.fullmatch(wrote.revision):
        wishes = dataclasses.replace(wishes, revision=wrote.revision)
    with load.load_backend(source, wishes) as backend:
        result = write_again(
            saved.transcript,
            backend,
            software=(saved.software, software_here()),
            on_answer=None if as_json else _print_answer,
        )
    changed = [f"picture {name}: decoded differently here" for name in saved.changed_pictures]
    result = dataclasses.replace(result, differences=(*result.differences, *changed))
    if as_json:
        typer.echo(json.dumps({"same": result.same, **dataclasses.asdict(result)}))
    else:
        _print_end(result)
    if not result.same:
        raise typer.Exit(INCOMPLETE)


def _who_wrote(transcript: Transcript, file: str) -> ModelIdentity:
    """Return the model that wrote the newest answer; raises `ConversationError` without one."""
    written = [each.model for turn in transcript.turns for each in turn.generated]
    if not written:
        raise ConversationError(f"{file!r} holds no answer that a model wrote here.")
    return written[-1]


def _source_of(wrote: ModelIdentity) -> str:
    """Return what to load for a recorded model, which may have been a folder somewhere."""
    if catalog.find(wrote.name) is not None:
        return wrote.name
    # Another repository is not downloaded because a file says so.
    raise ConversationError(
        f"The chat was written by {wrote.name!r}, which is none of the models known by name. "
        "Say where it is: --model PATH, or --model OWNER/NAME."
    )


def _print_answer(answer: Replayed) -> None:
    typer.echo(plain(in_options(str(answer))))
    if not answer.same and not answer.skipped:
        typer.echo(f"  then: {_shortened(answer.recorded)}\n  now:  {_shortened(answer.now)}")


def _shortened(text: str, longest: int = 200) -> str:
    line = " ".join(plain(text).split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def _print_end(result: Replay) -> None:
    same = sum(answer.same for answer in result.answers)
    total = len(result.answers)
    if result.same:
        typer.echo(f"{counted(total, 'answer')}, all as recorded.")
    else:
        typer.echo(f"{same} of {total} answers came out as recorded.")
    if result.differences:
        typer.echo("Not the same as when it was recorded:" if not result.same else "Although:")
        for line in result.differences:
            typer.echo(f"  {plain(line)}")
