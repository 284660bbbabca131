"""`gemma3vl evaluate`: how much a model gets right on a suite, and how sure that is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma3vl_app import catalog
from gemma3vl_app.cli import load, one_shot
from gemma3vl_app.cli.completion import complete_model
from gemma3vl_app.cli.exit_codes import INCOMPLETE
from gemma3vl_app.cli.messages import in_options
from gemma3vl_app.cli.progress import followed
from gemma3vl_app.plain import plain

if TYPE_CHECKING:
    from gemma3vl_app.evaluation.comparing import Comparison
    from gemma3vl_app.evaluation.results import Evaluation

SUITES = "docvqa, textvqa, vqav2, chartqa, ocrbench, reading, coco, mmmu, scenes"
FAILURES_SHOWN = 10
RUNS = Path("runs/evaluate")


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help=load.MODEL, autocompletion=complete_model, metavar="MODEL"),
    ] = None,
    suite: Annotated[str | None, typer.Argument(help=f"One of {SUITES}.", metavar="SUITE")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A .jsonl file, a folder of the package `datasets`, or a data set on the hub; "
            "without it, the suite's published set.",
            metavar="FILE",
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="Which configuration of the data set.", metavar="NAME")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split of the data set.", metavar="NAME")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder for answers, results and report; or runs/evaluate/SUITE-MODEL.",
            metavar="FOLDER",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask so many items only.", metavar="NUMBER")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Draws the items of --limit and the intervals.", metavar="NUMBER"),
    ] = 0,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Compare the finished runs in two folders.", metavar="FOLDERS"),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again about items that failed before.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what earlier runs wrote, and begin anew.")
    ] = False,
    max_new_tokens: one_shot.MaxNewTokens = None,
    crops: one_shot.Crops = "auto",
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    context_tokens: load.ContextTokens = None,
    revision: load.Revision = None,
    adapter: load.Adapters = None,
) -> None:
    """Ask a model the questions of a suite, and say how much it gets right.

    The same command goes on where it was ended, by Ctrl-C or a power cut. Items that fail count as
    wrong and are told; the exit code is 3 then. The folder holds results.json and report.html.

    Example: gemma3vl evaluate demo scenes --limit 60
    """
    if compare is not None:
        if model is not None or suite is not None:
            raise typer.BadParameter(
                "--compare asks no model: give it two folders, and neither model nor suite."
            )
        _tell_comparison(compare, seed)
        return
    if model is None or suite is None:
        raise typer.BadParameter("Say which model and which suite: gemma3vl evaluate demo scenes.")
    wishes = load.read_wishes(weights, device_map, max_memory, context_tokens, revision, adapter)
    catalog.check_source(model, servers=True)
    with load.spinner("Reading the data"):
        from gemma3vl_app.evaluation.data import read_data
        from gemma3vl_app.evaluation.run import evaluate as run
        from gemma3vl_app.evaluation.suites import SUITES as known
        from gemma3vl_app.evaluation.suites import find_suite

        if suite not in known:
            raise typer.BadParameter(f"There is no suite {suite!r}. There are: {SUITES}.")
        found = read_data(find_suite(suite), data, config=config, split=split, limit=limit)
    folder = out or RUNS / f"{suite}-{_short(model)}"
    with load.load_backend(model, wishes) as backend, followed("Items", "items") as follow:
        evaluation = run(
            backend,
            suite,
            data=found,
            out=folder,
            limit=limit,
            seed=seed,
            max_new_tokens=max_new_tokens,
            crops=crops,
            adapter=one_shot.only_adapter(wishes),
            retry_failed=retry_failed,
            restart=restart,
            progress=follow,
        )
    _tell(evaluation)
    if evaluation.failed:
        raise typer.Exit(INCOMPLETE)


def _short(model: str) -> str:
    """Return a model's name as a part of a folder's name."""
    kept = (c if c.isalnum() or c in "._-" else "-" for c in model.rstrip("/").split("/")[-1])
    return "".join(kept).strip(".-") or "model"


def _tell(evaluation: Evaluation) -> None:
    from gemma3vl_app.evaluation.report import REPORT, show_interval

    metrics = {metric.name: metric for metric in evaluation.metrics}
    table = _table("kind", "metric", "items", "failed", "score", "95 % interval")
    for score in evaluation.scores:
        metric = metrics[score.metric]
        numbers = (f"{score.items:,}", f"{score.failed:,}" if score.failed else "")
        shown = (metric.show(score.value), show_interval(metric, score))
        _row(table, score.kind, score.metric, *numbers, *shown)
    Console(highlight=False).print(table)
    for case in evaluation.failed[:FAILURES_SHOWN]:
        one_shot.note(f"  {case.item.id}: {in_options(case.error or '')}")
    if more := evaluation.failed[FAILURES_SHOWN:]:
        one_shot.note(f"  and {len(more):,} more, with their reasons in the report")
    if evaluation.failed:
        one_shot.note("They count as wrong. With --retry-failed they are asked again.")
    one_shot.note(f"{evaluation.folder}/{REPORT} shows the answers that are worst.")


def _tell_comparison(runs: tuple[Path, Path], seed: int) -> None:
    from gemma3vl_app.evaluation.comparing import compare

    comparison: Comparison = compare(*runs, seed=seed)
    table = _table("kind", "metric", "items", "a", "b", "b - a", "95 % interval")
    for change in comparison.changes:
        show = change.metric.show
        low_high = "-" if change.interval is None else " to ".join(map(show, change.interval))
        mark = " *" if change.is_certain else ""
        values = (show(change.a), show(change.b), show(change.gained), low_high + mark)
        _row(table, change.kind, change.metric.name, f"{change.items:,}", *values)
    Console(highlight=False).print(table)
    one_shot.note(f"a is {comparison.a}, b is {comparison.b}, on {comparison.suite}")
    for note in comparison.notes:
        one_shot.note(f"They were asked otherwise: {note}")
    one_shot.note("* the interval leaves out zero")


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    return table


def _row(table: Table, *cells: Any) -> None:
    table.add_row(*(Text(plain(cell)) for cell in cells))
