"""`gemma3vl bench`: how fast a model is here, beside what the machine can do."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma3vl_app import catalog
from gemma3vl_app.cli import load
from gemma3vl_app.cli.completion import complete_model

if TYPE_CHECKING:
    from gemma3vl_app.benchmark.speed import Speed
    from gemma3vl_app.loading.loader import LoadedModel

_CHART_WIDTH = 40  # characters of the longest bar
_MOST_LAYERS = 200
_SHORTEST, _LONGEST = 32, 131_072  # tokens of context


def bench(
    model: Annotated[
        str, typer.Argument(help=load.MODEL, autocompletion=complete_model, metavar="MODEL")
    ] = "demo",
    versus: Annotated[
        Literal["transformers"] | None,
        typer.Option("--vs", help="Measure this over the same weights, too, afterwards."),
    ] = None,
    contexts: Annotated[
        str,
        typer.Option(help="Lengths to write after, in tokens.", metavar="NUMBERS"),
    ] = "512,2048,8192",
    layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST_LAYERS,
            help="Random weights as wide as MODEL with so many layers: nothing is downloaded.",
            metavar="NUMBER",
        ),
    ] = None,
    fast_paths: Annotated[
        bool,
        typer.Option(help="Allow what is faster and not the reference to the last bit."),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON instead of tables.")
    ] = False,
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    revision: load.Revision = None,
) -> None:
    """Measure how fast a model is on this machine.

    Each speed stands beside the share that it makes of what the machine can do: a prompt multiplies
    with every weight, a word reads every weight from memory. Leave the machine alone meanwhile.

    Example: gemma3vl bench demo --vs transformers
    """
    lengths = _lengths(contexts)
    wishes = load.read_wishes(weights, device_map, max_memory, None, revision, None)
    catalog.check_source(model)
    about, found = _measured(
        *(model, layers, lengths, wishes),
        fast_paths=fast_paths,
        against_transformers=bool(versus),
    )
    if as_json:
        typer.echo(json.dumps(_as_dict(found, about)))
        return
    console = Console(highlight=False)
    console.print(Text(f"{about['model']}: {about['weights']}; {about['arithmetic']}"))
    console.print(_table(found, versus))
    console.print(_chart(found))


def _measured(
    model: str,
    layers: int | None,
    lengths: list[int],
    wishes: load.Wishes,
    *,
    fast_paths: bool,
    against_transformers: bool,
) -> tuple[dict[str, str], Speed]:
    """Load the model, or make a random one, and return what it is and how fast."""
    with load.spinner(f"Loading {model}") as status, tempfile.TemporaryDirectory() as folder:
        from gemma3vl_app.benchmark import baseline, speed
        from gemma3vl_app.loading import load_model

        def say(what: str) -> None:
            status.update(f"Measuring {what}")

        source = model if layers is None else _random(model, layers, Path(folder))
        options: dict[str, Any] = {
            "weights": wishes.weights,
            "device_map": wishes.device_map,
            "max_memory": wishes.max_memory,
            "revision": wishes.revision,
        }
        loaded = load_model(source, **options, fast_paths=fast_paths)
        about, plan = _about(loaded, model, layers), loaded.plan
        lengths = [each for each in lengths if each <= _context(loaded)]
        found = speed.measure(loaded, contexts=lengths, say=say)
        if against_transformers:
            del loaded  # there may be no room for both
            theirs = baseline.load_theirs(source, plan, options)
            found = speed.beside(found, baseline.measure_transformers(theirs, say))
        return about, found


def _lengths(text: str) -> list[int]:
    """Return lengths of context, checked."""
    try:
        lengths = sorted({int(each) for each in text.split(",")})
    except ValueError:
        lengths = []
    if not lengths or lengths[0] < _SHORTEST or lengths[-1] > _LONGEST:
        raise typer.BadParameter(
            f"Write lengths between {_SHORTEST} and {_LONGEST:,} with commas: 512,2048.",
            param_hint="--contexts",
        )
    return lengths


def _random(model: str, layers: int, folder: Path) -> Path:
    """Write a checkpoint of random weights as wide as a size of the catalog."""
    from gemma3vl_app.benchmark.models import random_checkpoint

    entry = catalog.find(model)
    if entry is None or not entry.repo or not entry.vision_parameters:
        raise typer.BadParameter(
            "Random weights are made as wide as 4b-it, 12b-it or 27b-it.", param_hint="--layers"
        )
    return random_checkpoint(folder, entry.size, layers=layers)


def _context(loaded: LoadedModel) -> int:
    """Return the longest context that leaves room to write."""
    from gemma3vl_app.benchmark.baseline import DECODED

    config: Any = loaded.model.config
    return int(config.get_text_config().max_position_embeddings) - DECODED


def _about(loaded: LoadedModel, model: str, layers: int | None) -> dict[str, str]:
    from gemma3vl_app import hardware

    plan = loaded.plan
    return {
        "model": model if layers is None else f"{model}, random weights, {layers} layers",
        "weights": plan.weights,
        "arithmetic": hardware.arithmetic(plan.dtype, plan.device_map.values()),
    }


def _table(found: Speed, versus: str | None) -> Table:
    """Return the figures as a table."""
    shown = Table("", "speed", "of what the machine can do", *([versus, "ratio"] if versus else []))
    for each in found.figures:
        limit = f"{each.share:.0%} of {each.limit}" if each.limit else ""
        row = [each.name, f"{each.value:.3g} {each.unit}", limit]
        if versus:
            row += (
                [f"{each.baseline:.3g}", f"{each.ratio:.2f}"]
                if each.baseline and each.ratio
                else ["", ""]
            )
        shown.add_row(*row)
    limits = found.ceilings
    shown.caption = (
        f"This machine reads {limits.read_bytes_per_sec / 1e9:.1f} GB/s and multiplies at "
        f"{limits.flop_per_sec / 1e9:,.0f} GFLOP/s."
    )
    return shown


def _chart(found: Speed) -> Text:
    """Return the time of a word by the tokens before it, as bars."""
    longest = max(found.sec_per_token.values(), default=1.0)
    lines = ["Milliseconds a token, by tokens of context"]
    for context, sec in found.sec_per_token.items():
        bar = "█" * max(1, round(_CHART_WIDTH * sec / longest))
        lines.append(f"{context:>9,}  {bar} {sec * 1000:.1f}")
    return Text("\n".join(lines))


def _as_dict(found: Speed, about: dict[str, str]) -> dict[str, Any]:
    figures = [dataclasses.asdict(each) | {"ratio": each.ratio} for each in found.figures]
    return {
        **about,
        "ceilings": dataclasses.asdict(found.ceilings),
        "figures": figures,
        "sec_per_token": {str(context): sec for context, sec in found.sec_per_token.items()},
    }
