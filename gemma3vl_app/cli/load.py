"""Wishes about a load as options of a command, and loading with its progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status as Spinner

from gemma3vl_app import catalog
from gemma3vl_app.cli.completion import complete_model
from gemma3vl_app.cli.messages import in_options
from gemma3vl_app.errors import Gemma3VLError
from gemma3vl_app.generation import Progress
from gemma3vl_app.planning.wishes import (
    check_device,
    check_weights,
    parse_bytes,
    parse_max_memory,
)

if TYPE_CHECKING:
    from gemma3vl_app.backends.protocol import Backend
    from gemma3vl_app.manager import ModelManager

MIB, GIB = 1 << 20, 1 << 30
MODEL = "A name of `gemma3vl models`, a hub id, a folder, a GGUF file or a server's address."

ModelArgument = Annotated[
    str, typer.Argument(help=MODEL, autocompletion=complete_model, metavar="MODEL")
]
ModelOption = Annotated[
    str, typer.Option("--model", help=MODEL, autocompletion=complete_model, metavar="MODEL")
]
Weights = Annotated[
    str, typer.Option(help="auto, bf16, fp32, w16, int8, nf4 or int4.", metavar="KIND")
]
DeviceMap = Annotated[
    str,
    typer.Option(
        help='auto, a device such as cuda:0, or JSON: {"model.norm": "cpu", ...}.', metavar="DEVICE"
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="Use these devices only, so far: cuda:0=24GiB,cpu=64GiB.", metavar="SIZES"),
]
ContextTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Make room for so long a conversation (or 8,192).", metavar="NUMBER"),
]
Revision = Annotated[
    str | None, typer.Option(help="A branch, tag or commit on the hub.", metavar="NAME")
]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", help="A peft adapter; repeat for more.", metavar="NAME=PATH"),
]
Draft = Annotated[
    str | None,
    typer.Option(
        help="A small text model that guesses ahead, such as 270m-it: faster, same answers.",
        autocompletion=complete_model,
        metavar="MODEL",
    ),
]
DiskCache = Annotated[
    str | None,
    typer.Option(
        help="Keep what is computed on the disk, so far, and go on from it later: 4GiB.",
        metavar="SIZE",
    ),
]

stderr = Console(stderr=True, highlight=False)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How a model shall be loaded, as the options say it."""

    weights: str = "auto"
    device_map: str | Mapping[str, str] = "auto"
    max_memory: Mapping[str, str | int] | None = None
    context_tokens: int | None = None
    revision: str | None = None
    adapters: Mapping[str, str] | None = None
    draft: str | None = None
    disk_cache: int | None = None


@contextmanager
def mistakes() -> Iterator[None]:
    """Turn errors about what the options say into those of a wrong command line (exit code 2)."""
    try:
        yield
    except Gemma3VLError as error:
        raise typer.BadParameter(in_options(str(error))) from error


def read_wishes(
    weights: str,
    device_map: str,
    max_memory: str | None,
    context_tokens: int | None,
    revision: str | None,
    adapters: Sequence[str] | None,
    draft: str | None = None,
    disk_cache: str | None = None,
) -> Wishes:
    """Return wishes; raises `typer.BadParameter` for those that make no sense on any machine."""
    with mistakes():
        check_weights(weights)
        return Wishes(
            weights=weights,
            device_map=parse_device_map(device_map),
            max_memory=None if max_memory is None else parse_max_memory(max_memory),
            context_tokens=context_tokens,
            revision=revision,
            adapters=_parse_adapters(adapters or ()) or None,
            draft=draft,
            disk_cache=None if disk_cache is None else parse_bytes(disk_cache),
        )


def parse_device_map(text: str) -> str | dict[str, str]:
    """Return "auto", a device, or the map of a JSON object."""
    if not text.lstrip().startswith("{"):
        return text if text == "auto" else check_device(text)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise typer.BadParameter(
            "--device-map is no JSON object of parts and devices. "
            """Write it as '{"": "cuda:0"}'; see docs/memory.md."""
        )
    return {part: check_device(device) for part, device in found.items()}


def _parse_adapters(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, _, path = (part.strip() for part in text.partition("="))
        if not name or not path:
            raise typer.BadParameter(
                f"--adapter {text!r} is no name and folder. Write it as NAME=PATH."
            )
        if name in found:
            raise typer.BadParameter(f"Two adapters are called {name!r}. Give each its own name.")
        found[name] = path
    return found


def load_backend(model: str, wishes: Wishes, manager: ModelManager | None = None) -> Backend:
    """Load `model`, with its progress on stderr from the first moment; into `manager` if given."""
    catalog.check_source(model, servers=True)  # at once: what follows takes seconds to import
    if wishes.draft is not None:
        catalog.check_source(wishes.draft)
    with spinner(f"Loading {model}") as status:
        from gemma3vl_app.backends.load import load

        said = {  # a manager takes the same model with other options for another one
            field.name: getattr(wishes, field.name)
            for field in fields(wishes)
            if getattr(wishes, field.name) != field.default
        }
        loading: Callable[..., Backend] = manager.load if manager else load
        return loading(model, progress=lambda step: status.update(escape(describe(step))), **said)


@contextmanager
def spinner(text: str) -> Iterator[Spinner]:
    """Show that something is going on: on a terminal only, so that logs stay clean."""
    with stderr.status(escape(text)) as status:  # a name may hold square brackets
        yield status


def describe(step: Progress) -> str:
    """Return a line such as "Downloading 4b-it: 1.2 of 8.6 GiB"."""
    if step.unit == "bytes":
        size, name = (GIB, "GiB") if max(step.done, step.total) >= GIB else (MIB, "MiB")
        digits = 1 if size == GIB else 0
        of_total = f" of {step.total / size:.{digits}f}" if step.total else ""
        amount = f" {step.done / size:.{digits}f}{of_total} {name}"
    else:
        amount = f" {step.done} of {step.total} {step.unit}" if step.total else ""
    return f"{step.message or step.stage}{':' if amount else ''}{amount}"
