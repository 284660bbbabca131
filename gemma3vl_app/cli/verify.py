"""`gemma3vl verify`: are two models the same, or one in every form and on every fast path."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gemma3vl_app import catalog
from gemma3vl_app.addresses import is_address
from gemma3vl_app.cli import load, page
from gemma3vl_app.cli.completion import complete_model
from gemma3vl_app.cli.exit_codes import FAILED, INCOMPLETE
from gemma3vl_app.cli.messages import in_options
from gemma3vl_app.cli.verify_tables import paths_report, two_report
from gemma3vl_app.errors import Gemma3VLError, VerificationError
from gemma3vl_app.plain import plain
from gemma3vl_app.planning.wishes import check_weights

if TYPE_CHECKING:
    from gemma3vl_app.faithfulness.bounds import Bounds
    from gemma3vl_app.faithfulness.path_results import PathsVerification
    from gemma3vl_app.faithfulness.results import Verification

logger = logging.getLogger(__name__)

_LOCAL = "A name of `gemma3vl models`, a hub id, a folder or a GGUF file."
STDOUT = Path("-")
MOST_TOLD = 3  # lines about bounds in the one of stderr


def verify(
    a: Annotated[
        str,
        typer.Argument(
            help=f"The reference. {_LOCAL}", autocompletion=complete_model, metavar="MODEL"
        ),
    ],
    b: Annotated[
        str | None,
        typer.Argument(
            help="What is compared with it.", autocompletion=complete_model, metavar="MODEL"
        ),
    ] = None,
    against: Annotated[
        Literal["fp32"] | None,
        typer.Option(help="Compare MODEL itself, in other forms and on fast paths, with fp32."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="The form of both models (or fp32); with --against one of those that are "
            "compared (or all), and repeated for more.",
            metavar="KIND",
        ),
    ] = None,
    weights_b: Annotated[
        str | None, typer.Option(help="Another form for the second model.", metavar="KIND")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Ask about the pictures in this folder instead.", metavar="FOLDER"),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Ask this instead: a question a line, or turns as a JSON list.", metavar="FILE"
        ),
    ] = None,
    max_difference: Annotated[
        float | None,
        typer.Option(help="Bound for the difference of a logit, at any place.", metavar="NUMBER"),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(help="Bound for the KL divergence at any place, in nats.", metavar="NUMBER"),
    ] = None,
    max_mean_kl: Annotated[
        float | None,
        typer.Option(help="Bound for the mean KL divergence, in nats.", metavar="NUMBER"),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            help="Least share of places with the same likeliest token, from 0 to 1.",
            metavar="NUMBER",
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Name the first layer, and the weights, that differ.")
    ] = False,
    as_json: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Write all figures to this file; - prints them alone.", metavar="FILE"
        ),
    ] = None,
    revision: load.Revision = None,
    revision_b: Annotated[
        str | None, typer.Option(help="The same for the second model.", metavar="NAME")
    ] = None,
) -> None:
    """Compare two models, or one with itself in fp32, and say whether they are the same.

    Both get the same pictures and prompts, one after the other, so one of them has to fit into
    memory. Exit code 1 where a bound is exceeded, 3 where something could not be compared; without
    bounds, the numbers must be the same but for rounding. See docs/faithfulness.md.

    Example: gemma3vl verify 4b-it my-4b --deep

    Example: gemma3vl verify demo --against fp32 --weights int8
    """
    _check_sides(a, b, against, weights, weights_b, deep=deep, revision_b=revision_b)
    with load.mistakes():
        bounds = _bounds(max_difference, max_kl, max_mean_kl, min_top1)
    page.end_tidily_on_signals()  # what was written aside takes up to 1 GB
    try:
        if as_json is not None and as_json != STDOUT:
            _check_writable(as_json)  # before minutes of measuring
        found, report = _compared(
            a,
            b,
            weights=weights or (),
            weights_b=weights_b,
            revision_b=revision_b,
            deep=deep,
            bounds=bounds,
            pictures=pictures,
            prompts=prompts,
            revision=revision,
        )
        _show(found, report, as_json)
    except Gemma3VLError as error:  # not the code of models that were found to differ
        logger.debug("nothing was compared", exc_info=True)
        _tell(in_options(str(error)))
        raise typer.Exit(INCOMPLETE) from error
    if found.exceeded:
        told = "Not the same" if found.differs else "Not compared"
        _tell(f"{told}: {_shortened(found.exceeded)}.")
        raise typer.Exit(FAILED if found.differs else INCOMPLETE)


def _compared(
    a: str,
    b: str | None,
    *,
    weights: Sequence[str],
    weights_b: str | None,
    revision_b: str | None,
    deep: bool,
    **options: Any,
) -> tuple[Verification | PathsVerification, Iterator[Table | Text]]:
    """Compare, and return what was found with what is shown of it."""
    if b is None:
        paths = _paths(a, weights=tuple(weights), **options)
        return paths, paths_report(paths)
    form = (weights or ("fp32",))[0]
    more = {"weights": form, "weights_b": weights_b, "revision_b": revision_b, "deep": deep}
    two = _two(a, b, **options, **more)
    return two, two_report(two)


def _show(
    found: Verification | PathsVerification,
    report: Iterator[Table | Text],
    as_json: Path | None,
) -> None:
    if as_json == STDOUT:
        typer.echo(json.dumps(found.to_dict(), allow_nan=False))
        return
    console = Console(highlight=False)
    for part in report:
        console.print(part)
    if as_json is not None:
        _write(as_json, found.to_dict())


def _check_sides(
    a: str,
    b: str | None,
    against: str | None,
    weights: Sequence[str] | None,
    weights_b: str | None,
    *,
    deep: bool,
    revision_b: str | None,
) -> None:
    """Raise `typer.BadParameter` where the options do not go together."""
    if (b is None) == (against is None):
        raise typer.BadParameter("Name a second MODEL, or compare with --against fp32.")
    if b is None and (weights_b or deep or revision_b):
        raise typer.BadParameter(
            "--weights-b, --revision-b and --deep are for two models; leave them out."
        )
    if b is not None and weights and len(weights) > 1:
        raise typer.BadParameter("Two models are compared in one form; name --weights once.")
    with load.mistakes():
        for each in (*(weights or ()), *([weights_b] if weights_b else ())):
            check_weights(each)
        for source in (a, b):
            if source is not None:
                if is_address(source):
                    raise VerificationError(
                        f"{source} is a server's address, which does not tell whole distributions."
                    )
                catalog.check_source(source)


def _bounds(
    max_difference: float | None,
    max_kl: float | None,
    max_mean_kl: float | None,
    min_top1: float | None,
) -> Bounds:
    from gemma3vl_app.faithfulness.bounds import Bounds

    return Bounds(
        max_difference=max_difference,
        max_kl=max_kl,
        max_mean_kl=max_mean_kl,
        min_top1=min_top1,
        why="the bounds that were given",
    )


def _two(a: str, b: str, **options: Any) -> Verification:
    """Compare two models, with what is going on told on a terminal."""
    with load.spinner(f"Loading {a}") as status:
        from gemma3vl_app.faithfulness.two_models import verify as compare

        return compare(a, b, progress=_telling(status.update), **options)


def _paths(model: str, **options: Any) -> PathsVerification:
    """Compare a model with itself, with what is going on told on a terminal."""
    with load.spinner(f"Loading {model}") as status:
        from gemma3vl_app.faithfulness.paths import verify_paths

        return verify_paths(model, progress=_telling(status.update), **options)


def _telling(update: Callable[[str], None]) -> Callable[[Any], None]:
    return lambda step: update(escape(load.describe(step)))


def _write(file: Path, found: dict[str, Any]) -> None:
    """Write figures as JSON; raises `VerificationError`, once they have been shown."""
    from gemma3vl_app.atomic_file import atomic_file

    try:
        with atomic_file(file) as opened:
            opened.write(json.dumps(found, indent=1, allow_nan=False).encode())
    except OSError as error:
        raise VerificationError(f"{str(file)!r} cannot be written ({error.strerror}).") from error


def _check_writable(file: Path) -> None:
    """Raise `VerificationError` where no file can be written there."""
    if file.is_dir():
        raise VerificationError(f"{str(file)!r} cannot be written (it is a folder).")
    try:
        with tempfile.TemporaryFile(dir=file.resolve().parent):
            pass
    except OSError as error:
        raise VerificationError(f"{str(file)!r} cannot be written ({error.strerror}).") from error


def _shortened(exceeded: Sequence[str]) -> str:
    """Return what is over its bound, for one line."""
    more = f"; and {len(exceeded) - MOST_TOLD} more" if len(exceeded) > MOST_TOLD else ""
    return "; ".join(exceeded[:MOST_TOLD]) + more


def _tell(line: str) -> None:
    load.stderr.print(Text(plain(line), style="red"), soft_wrap=True)
