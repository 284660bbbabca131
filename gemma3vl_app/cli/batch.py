"""`gemma3vl batch`: ask one thing about every picture of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemma3vl_app import catalog
from gemma3vl_app.cli import load, one_shot
from gemma3vl_app.cli.exit_codes import INCOMPLETE
from gemma3vl_app.cli.messages import in_options
from gemma3vl_app.cli.progress import followed, note
from gemma3vl_app.generation import Greedy
from gemma3vl_app.schemas import read_schema
from gemma3vl_app.wording import counted

if TYPE_CHECKING:
    from gemma3vl_app.folders.items import BatchReport

FAILURES_SHOWN = 10


def batch(
    pictures: Annotated[
        list[Path], typer.Argument(help="Folders, or pictures.", metavar="FOLDERS")
    ],
    out: Annotated[
        str,
        typer.Option(
            help="A file that ends in .jsonl or .csv, or `sidecars`: a file beside each picture.",
            metavar="FILE",
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(help="What to ask about each picture; without it, captions.", metavar="TEXT"),
    ] = None,
    detailed: Annotated[
        bool, typer.Option("--detailed", help="Captions of a paragraph in place of a sentence.")
    ] = False,
    schema: Annotated[
        Path | None,
        typer.Option(help="A file with a JSON schema: answers are data.", metavar="FILE"),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Look into folders inside folders, too.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again about pictures that failed before.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what earlier runs wrote, and begin anew.")
    ] = False,
    model: load.ModelOption = "demo",
    system: one_shot.System = None,
    max_new_tokens: one_shot.MaxNewTokens = None,
    seed: one_shot.Seed = None,
    crops: one_shot.Crops = "auto",
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    context_tokens: load.ContextTokens = None,
    revision: load.Revision = None,
    adapter: load.Adapters = None,
    draft: load.Draft = None,
) -> None:
    """Ask one thing about every picture of a folder, and write the answers to a file.

    The same command goes on where it was ended, by Ctrl-C or a power cut. Pictures that fail are
    told at the end, and the exit code is 3 then; the others are done.

    Example: gemma3vl batch photos --out captions.jsonl
    """
    if prompt is not None and detailed:
        raise typer.BadParameter("--detailed is about captions; say it in --prompt.")
    wishes = load.read_wishes(
        weights, device_map, max_memory, context_tokens, revision, adapter, draft
    )
    catalog.check_source(model, servers=True)
    json_schema = None if schema is None else read_schema(schema)
    with load.spinner("Looking for pictures"):
        from gemma3vl_app.folders.batch import batch as ask_about_each
        from gemma3vl_app.folders.batch import check_batch

        question = _question(prompt, json_schema, detailed=detailed)
        known: dict[str, Any] = {"schema": json_schema, "system": system, "crops": crops}
        if seed is None:
            known["sampling"] = Greedy()
        if max_new_tokens is not None:
            known["max_new_tokens"] = max_new_tokens
        check_batch(  # before a model is loaded for nothing
            pictures,
            prompt=question,
            out=out,
            recursive=recursive,
            restart=restart,
            adapter=one_shot.only_adapter(wishes),
            model=_known_of(model, wishes),
            **known,
        )
    with load.load_backend(model, wishes) as backend, followed("Pictures", "pictures") as follow:
        report = ask_about_each(
            backend,
            pictures,
            prompt=question,
            schema=json_schema,
            out=out,
            recursive=recursive,
            system=system,
            sampling=None if seed is None else one_shot.drawing(backend, {"seed": seed}),
            max_new_tokens=max_new_tokens,
            adapter=one_shot.only_adapter(wishes),
            crops=crops,
            retry_failed=retry_failed,
            restart=restart,
            progress=follow,
        )
    _tell_end(report, out)
    if report.failed:
        raise typer.Exit(INCOMPLETE)


def _known_of(model: str, wishes: load.Wishes) -> dict[str, str]:
    """Return what is known of a model's identity before it is loaded."""
    entry = catalog.find(model)
    known = {} if entry is None else {"name": entry.name}
    return known if wishes.weights == "auto" else {**known, "weights": wishes.weights}


def _question(prompt: str | None, schema: dict[str, Any] | None, *, detailed: bool) -> str:
    """Return what is asked; a model that shall fill in a schema is shown it."""
    if schema is not None:
        from gemma3vl_app.tasks.extraction import extract_request

        return extract_request((), schema, instructions=prompt).conversation.messages[0].text
    if prompt is not None:
        return prompt
    from gemma3vl_app.tasks.prompts import CAPTION

    return CAPTION["detailed" if detailed else "short"].text


def _tell_end(report: BatchReport, out: str) -> None:
    counts = [f"{report.done:,} done"]
    if report.failed:
        counts.append(f"{len(report.failed):,} failed")
    if report.skipped:
        counts.append(f"{counted(report.skipped, 'other file')} left out")
    if report.earlier:
        counts.append(f"{len(report.items) - report.earlier:,} asked about in this run")
    total = counted(len(report.items), "picture")
    note(f"{total}: {', '.join(counts)}, {report.seconds:,.0f} s; {out}")
    for item in report.failed[:FAILURES_SHOWN]:
        note(f"  {item.file}: {in_options(item.error or '')}")
    if len(report.failed) > FAILURES_SHOWN:
        note(f"  and {len(report.failed) - FAILURES_SHOWN:,} more, with their reasons in {out}")
    if report.failed:
        note("The same command with --retry-failed asks about those again.")
