"""`gemma3vl finetune`: a recipe trained, or only weighed; as one process or one of many."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gemma3vl_app.cli import exit_codes
from gemma3vl_app.cli.load import GIB, describe, mistakes, spinner, stderr
from gemma3vl_app.errors import Gemma3VLError
from gemma3vl_app.plain import plain

if TYPE_CHECKING:
    from gemma3vl_app.finetune.dry_run import DryRun
    from gemma3vl_app.finetune.recipe import Recipe
    from gemma3vl_app.generation import Progress

SHARDINGS = {"none": "a whole copy on each", "fsdp": "shared out by FSDP2"}


def finetune(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A name that `--list` shows, or a file of yours that ends in .yaml.",
            metavar="RECIPE",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields of the recipe to change: epochs=2."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing; show what it would take.")
    ] = False,
    pictures: Annotated[
        int,
        typer.Option(
            min=0, help="With --dry-run: pictures in each conversation.", metavar="NUMBER"
        ),
    ] = 1,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show the recipes that come with this program.")
    ] = False,
) -> None:
    """Fine-tune a model by a recipe; prints the folder of the adapter or the model.

    With --dry-run it downloads nothing, and the exit code is 1 where the recipe does not fit. Ended
    midway, the same command goes on where it was. On several GPUs it runs below `accelerate launch
    -m gemma3vl_app.cli` or `torchrun -m gemma3vl_app.cli`; see docs/finetuning.md.

    Example: gemma3vl finetune 4b-lora data=photos --dry-run
    """
    if show_list:
        _list()
        return
    # peft asks transformers by a name that is going away; nobody here can do anything about it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    if recipe is None:
        raise typer.BadParameter("Which recipe? `gemma3vl finetune --list` shows all.")
    if not _is_first():
        _follow(recipe, overrides or [], dry_run)
        return
    with spinner(f"Reading {recipe}"), mistakes():
        from gemma3vl_app.finetune.recipe import read_recipe

        wanted = read_recipe(recipe, overrides or [])
    if dry_run:
        _weigh(wanted, pictures)
    else:
        typer.echo(_train(wanted))


def _is_first() -> bool:
    """Whether this is the only process, or the one of a launcher's that speaks."""
    return os.environ.get("RANK", "0") == "0"


def _follow(recipe: str, overrides: list[str], dry_run: bool) -> None:
    """Work as one of many processes, silently: the first one says what there is to say.

    The first one of another machine says why it failed: it may be that machine's own fault.
    """
    if dry_run:
        return
    logging.disable(logging.WARNING)
    speaks = os.environ.get("LOCAL_RANK") == "0"
    from gemma3vl_app.finetune.recipe import read_recipe
    from gemma3vl_app.finetune.train import finetune as train

    try:
        train(read_recipe(recipe, overrides))
    except Gemma3VLError as error:
        if speaks:
            stderr.print(f"Process {os.environ['RANK']}: {plain(str(error))}", markup=False)
        raise typer.Exit(exit_codes.FAILED) from error


def _train(recipe: Recipe) -> str:
    """Train, with its progress on stderr, and return the folder of the result."""
    if not recipe.data:
        raise typer.BadParameter(
            "Train on what? Add data=FOLDER (pictures with a text beside each) or "
            "data=FILE.jsonl; --dry-run needs none."
        )
    with spinner(f"Loading {recipe.model}") as status:
        from gemma3vl_app.finetune.train import finetune as train

        def show(step: Progress) -> None:
            line = plain(describe(step))
            if step.stage in ("train", "finished"):  # each stays: it is the training's log
                stderr.print(line, markup=False, soft_wrap=True)
            status.update(escape(line))

        return str(train(recipe, progress=show))


def _list() -> None:
    from gemma3vl_app.finetune.recipe import read_recipe, shipped_recipes

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in ("recipe", "model", "method", "GPUs", "global batch", "learning rate", "tokens"):
        table.add_column(heading, no_wrap=True)
    for name in shipped_recipes():
        each = read_recipe(name)
        numbers = (each.gpus, each.global_batch, f"{each.learning_rate:g}", each.max_tokens)
        table.add_row(name, each.model, each.method, *map(str, numbers))
    Console(highlight=False).print(table)


# --- a dry run on paper ---


def _weigh(recipe: Recipe, pictures: int) -> None:
    with spinner("Counting"):
        from gemma3vl_app.finetune.dry_run import dry_run

        found = dry_run(recipe, pictures=pictures)
    out = Console(highlight=False)
    for line in _facts(found):
        out.print(plain(line), markup=False, soft_wrap=True)
    out.print()
    out.print(_table(found))
    out.print()
    out.print(_verdict(found), soft_wrap=True)
    out.print(
        f"Beside the GPUs: {found.host_bytes / GIB:.1f} GiB of the first machine's memory, more "
        f"than the programs' own, and {found.disk_bytes / GIB:.1f} GiB of disk for the model, "
        "checkpoints and the result.",
        soft_wrap=True,
    )
    out.print("Estimates, not measured on GPUs: docs/finetuning.md has the formulas.", style="dim")
    if not found.fits:
        raise typer.Exit(exit_codes.FAILED)


def _facts(found: DryRun) -> list[str]:
    recipe = found.recipe
    share = found.trained / found.parameters
    where = f"{recipe.gpus} GPUs, {SHARDINGS[recipe.sharding]}" if recipe.gpus > 1 else "one GPU"
    times = "once" if found.micro_batches == 1 else f"{found.micro_batches} times"
    return [
        f"{recipe.model}, {recipe.method}, on {where}",
        f"trains {found.trained:,} of {found.parameters:,} parameters ({share:.2%})",
        f"a step sees {recipe.global_batch} conversations of up to {recipe.max_tokens:,} tokens, "
        f"{found.tokens_per_step:,} tokens in all; each GPU computes {recipe.micro_batch} at once, "
        f"{times}",
    ]


def _table(found: DryRun) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("on each GPU", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    for name, size in dataclasses.asdict(found.per_gpu).items():
        table.add_row(name, f"{size / GIB:.2f}")
    table.add_section()
    table.add_row("total", f"{found.per_gpu.total / GIB:.2f}")
    return table


def _verdict(found: DryRun) -> str:
    fits = "fits" if found.fits else "does not fit"
    needed = [f"{n} ({SHARDINGS[how]})" for how, n in found.gpus_needed.items() if n]
    least = f"The fewest that hold it: {', '.join(needed)}." if needed else "No number holds it."
    return f"It {fits} on GPUs of {found.gpu_bytes / GIB:.0f} GiB. {least}"
