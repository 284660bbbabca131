"""`gemma3vl models` and `gemma3vl plan`: what there is, and what it needs; without torch."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gemma3vl_app import catalog, hardware
from gemma3vl_app.catalog import LICENCE, LICENCE_LINK, MODELS, Entry
from gemma3vl_app.cli import exit_codes, load
from gemma3vl_app.cli.completion import complete_model
from gemma3vl_app.cli.messages import in_options
from gemma3vl_app.planning import plan as make_plan
from gemma3vl_app.planning.load_plan import DeviceBytes, LoadPlan, TrainingAdvice
from gemma3vl_app.planning.plan import DEFAULT_CONTEXT_TOKENS
from gemma3vl_app.planning.wishes import UNLIMITED_BYTES, gib

PURPOSES = {
    "weights": "weights",
    "kv_global": "KV\nglobal",
    "kv_sliding": "KV\nsliding",
    "vision": "vision",
    "logits": "logits",
    "reserve": "reserve",
    "total": "total",
}
MARGIN = 2
SMALLEST_SHOWN = 0.005  # GiB; less would read 0.00
KNOWN_PREFIXES = re.compile(r"^(model\.)?(language_model\.)?")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def models(as_json: AsJson = False) -> None:
    """List the models known by name: what they take, and what fits on this machine.

    Example: gemma3vl models
    """
    machine = hardware.detect_without_torch()
    plans = {
        size: make_plan(next(e.name for e in MODELS.values() if e.size == size), machine=machine)
        for size in {entry.size for entry in MODELS.values()}
    }
    if as_json:
        typer.echo(json.dumps([_row(entry, plans[entry.size]) for entry in MODELS.values()]))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("size", "context"):
        table.add_column(heading, justify="right", min_width=len(heading))
    for heading in ("pictures", "licence", "here"):
        table.add_column(heading, min_width=len(heading))
    for before, entry in zip([None, *MODELS.values()], MODELS.values(), strict=False):
        if before is not None and _release(before) != _release(entry):
            table.add_section()
        table.add_row(
            Text(entry.name, style=f"link {entry.card}"),
            _billions(entry.parameters),
            f"{entry.context_tokens >> 10}k",
            "yes" if entry.pictures else "-",
            entry.licence.removesuffix(" Terms of Use"),
            short_fit(plans[entry.size]),
        )
    out = Console()
    out.print(table)
    out.print()
    for line in (
        f"here: with room for {DEFAULT_CONTEXT_TOKENS:,} tokens and one picture; see "
        "`gemma3vl plan NAME`.",
        "it answers, pt only continues text, qat was trained to be rounded to 4 bits.",
        f"Licence: {LICENCE}, {LICENCE_LINK}",
        "Cards: https://huggingface.co/google/gemma-3-4b-it and so on; --json has each.",
    ):
        out.print(line, soft_wrap=True, highlight=False, style="dim")


def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="A name that `gemma3vl models` shows, or a folder.",
            autocompletion=complete_model,
            metavar="MODEL",
        ),
    ],
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="Plan for such GPUs, not for this machine: 2xrtx-4090.", metavar="NAME"),
    ] = None,
    context_tokens: load.ContextTokens = None,
    images: Annotated[
        int, typer.Option(min=0, help="Pictures in each conversation.", metavar="NUMBER")
    ] = 1,
    sequences: Annotated[
        int, typer.Option(min=1, help="Conversations at once.", metavar="NUMBER")
    ] = 1,
    train: Annotated[
        bool, typer.Option("--train", help="Add the hardware recommended for fine-tuning.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a model would be loaded, and why; exit code 1 when it does not fit.

    Downloads nothing. With --max-memory or --gpu it plans for other machines.

    Example: gemma3vl plan 27b-it --max-memory cuda:0=24GiB,cuda:1=24GiB,cpu=64GiB
    """
    wishes = load.read_wishes(weights, device_map, max_memory, context_tokens, None, None)
    with load.mistakes():
        machine = None if gpu is None else hardware.known_machine(gpu)
    found = make_plan(
        model,
        weights=wishes.weights,
        device_map=wishes.device_map,
        max_memory=wishes.max_memory,
        context_tokens=wishes.context_tokens,
        images=images,
        sequences=sequences,
        train=train,
        machine=machine,
    )
    if as_json:
        typer.echo(json.dumps({"model": model, **_plain(found)}))
    else:
        _print_plan(model, found)
    if not found.fits:
        raise typer.Exit(exit_codes.FAILED)


# --- a model in a row ---


def short_fit(plan: LoadPlan) -> str:
    """Return what fits in a few words: "bf16, 8.6 GiB on cpu", or "does not fit"."""
    if not plan.fits:
        return "does not fit"
    places = " + ".join(f"{gib(b.total)} on {d}" for d, b in plan.bytes_by_device.items())
    return f"{plan.weights}, {places}"


def _row(entry: Entry, plan: LoadPlan) -> dict[str, Any]:
    return {
        **dataclasses.asdict(entry),
        "pictures": entry.pictures,
        "card": entry.card,
        "licence_link": LICENCE_LINK,
        "fits": plan.fits,
        "weights": plan.weights,
        "bytes_by_device": {d: b.total for d, b in plan.bytes_by_device.items()},
    }


def _release(entry: Entry) -> str:
    return "" if entry.size == "demo" else entry.name.removeprefix(f"{entry.size}-")


def _billions(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 0.9995e9 else f"{parameters / 1e6:.0f} M"


# --- a plan on paper ---


def _print_plan(model: str, plan: LoadPlan) -> None:
    out = Console(highlight=False)
    entry = catalog.find(model)
    verdict = "fits" if plan.fits else "does not fit"
    out.print(
        f"[bold]{entry.name if entry else 'This model'} {verdict}[/bold]: {plan.weights} weights, "
        f"computed in {plan.dtype}, {plan.context_tokens:,} tokens of context"
    )
    out.print()
    out.print(_table(plan))
    by_device = short_map(plan.device_map)
    width = max(map(len, by_device))
    places = [f"{device:{width}}  {', '.join(parts)}" for device, parts in by_device.items()]
    title = "Where each part lies" if plan.fits else "Where each part would lie"
    _section(out, title, places, indent=width + 2)
    _section(out, "Why", [f"- {reason}" for reason in plan.reasons])
    if plan.ways:
        _section(out, "What would fit", [f"- {way}" for way in plan.ways])
    elif not plan.fits:
        _section(out, "What would fit", ["Nothing near it: choose a smaller model."])
    if plan.training:
        _section(out, "Fine-tuning", [f"- {_training(plan.training)}", plan.training.source])


def _section(out: Console, title: str, lines: Iterable[str], *, indent: int = 2) -> None:
    """Print lines below a title, wrapped to the terminal with nothing behind them."""
    out.print()
    out.print(title, style="bold")
    for line in lines:
        wrapped = textwrap.fill(
            in_options(line),
            width=out.width,
            initial_indent=" " * MARGIN,
            subsequent_indent=" " * (MARGIN + indent),
            break_long_words=False,
            break_on_hyphens=False,
        )
        out.print(wrapped, markup=False, soft_wrap=True)


def _table(plan: LoadPlan) -> Table:
    """Return the table of GiB by device and purpose."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("GiB on", no_wrap=True)
    for heading in (*PURPOSES.values(), "limit"):
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for device in dict.fromkeys([*plan.limits_by_device, *plan.bytes_by_device]):
        held = plan.bytes_by_device.get(device, DeviceBytes())
        limit = plan.limits_by_device.get(device, 0)
        sizes = [_gib(getattr(held, purpose)) for purpose in PURPOSES]
        shown = "" if limit >= UNLIMITED_BYTES else f"{limit / load.GIB:.2f}"
        over = "red" if held.total > limit else None
        table.add_row(device, *sizes, shown, style=over)
    return table


def _gib(size: int) -> str:
    if not size:
        return "-"
    return "<0.01" if size / load.GIB < SMALLEST_SHOWN else f"{size / load.GIB:.2f}"


def short_map(device_map: Mapping[str, str]) -> dict[str, list[str]]:
    """Return a device map by device, in short names and with layers as ranges."""
    found: dict[str, list[str]] = {}
    layers: dict[str, list[int]] = {}
    for module, device in device_map.items():
        short = KNOWN_PREFIXES.sub("", module) or module
        if layer := re.fullmatch(r"layers\.(\d+)", short):
            layers.setdefault(device, []).append(int(layer[1]))
            found.setdefault(device, [])
        else:
            everything = "everything" if len(device_map) == 1 else "everything else"
            found.setdefault(device, []).append(short or everything)
    for device, numbers in layers.items():
        found[device].append(f"layers {_ranges(sorted(numbers))}")
    return found


def _ranges(numbers: list[int]) -> str:
    """Return "0-3, 5" for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _training(advice: TrainingAdvice) -> str:
    nodes = f"{advice.nodes} node{'s' * (advice.nodes > 1)}"
    return (
        f"Megatron Bridge recommends {nodes} with {advice.gpus_per_node} GPUs"
        f"{f' each, {advice.gpus} in all' if advice.nodes > 1 else ''}."
    )


def _plain(plan: LoadPlan) -> dict[str, Any]:
    """Return the plan for JSON; a device without a limit has none."""
    plain = plan.to_dict()
    limits = plan.limits_by_device.items()
    plain["limits_by_device"] = {d: None if b >= UNLIMITED_BYTES else b for d, b in limits}
    return plain
