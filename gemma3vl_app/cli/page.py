"""`gemma3vl app`: the chat page, until it is ended."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from gemma3vl_app import catalog
from gemma3vl_app.cli import load

SIGNALLED = 128  # plus the signal, by which a shell sees what ended a program


Host = Annotated[str, typer.Option(help="Address to listen on.", metavar="ADDRESS")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.", metavar="NUMBER")]
FindPort = Annotated[
    bool, typer.Option("--find-port", help="When the port is taken, use the next free one.")
]
Auth = Annotated[
    list[str] | None,
    typer.Option(
        help="Who may come in; once for each. Better in the environment: others on this "
        "machine see what a command is called with.",
        metavar="NAME:PASSWORD",
        envvar="GEMMA3VL_AUTH",
    ),
]
NoAuth = Annotated[bool, typer.Option("--no-auth", help="On a public address, let everybody in.")]
Conversations = Annotated[
    Path | None,
    typer.Option(
        help="Folder to keep conversations in; see docs/store.md for the usual one.",
        metavar="FOLDER",
    ),
]
Forget = Annotated[
    bool, typer.Option("--forget", help="Keep no conversations when the program ends.")
]
Offer = Annotated[
    list[str] | None,
    typer.Option(
        help="A model that the page offers to load; repeat for more. All of `gemma3vl models` "
        "without it.",
        metavar="NAME",
    ),
]


def open_app(
    model: load.ModelOption = "demo",
    host: Host = "127.0.0.1",
    port: Port = 7860,
    find_port: FindPort = False,
    auth: Auth = None,
    no_auth: NoAuth = False,
    conversations: Conversations = None,
    forget: Forget = False,
    offer: Offer = None,
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    context_tokens: load.ContextTokens = None,
    revision: load.Revision = None,
    adapter: load.Adapters = None,
    draft: load.Draft = None,
) -> None:
    """Open the chat page, until Ctrl-C.

    Example: gemma3vl app --model 4b-it --weights nf4
    """
    wishes = load.read_wishes(
        weights, device_map, max_memory, context_tokens, revision, adapter, draft
    )
    for source in (model, *(offer or ())):
        catalog.check_source(source, servers=True)
    with load.spinner("Starting"):  # importing the page's library takes seconds
        from gemma3vl_app.manager import ModelManager
        from gemma3vl_app.server import check_access, check_port, serve
        from gemma3vl_app.store import default_folder
    logins = [read_login(each) for each in auth or ()]
    check_access(host, logins, no_auth=no_auth)
    check_port(host, port, find_port=find_port)  # before the model is loaded for nothing
    end_tidily_on_signals()
    with ModelManager() as manager:
        serve(
            load.load_backend(model, wishes, manager),
            manager=manager,
            offered=offer or (),
            host=host,
            port=port,
            find_port=find_port,
            logins=logins,
            no_auth=no_auth,
            conversations=None if forget else conversations or default_folder(),
            on_ready=lambda address: typer.echo(f"{model} is ready: {address}"),
        )


def read_login(text: str) -> tuple[str, str]:
    """Return name and password of a login as it is written."""
    name, _, password = text.partition(":")
    if not name or not password:
        raise typer.BadParameter("Write a login as NAME:PASSWORD.", param_hint="--auth")
    return name, password


def end_tidily_on_signals(code: int | None = None) -> None:
    """Let a closed terminal or `kill` end the program as Ctrl-C does: uploads are deleted.

    It ends with `code`, or as shells expect of a program that a signal ended.
    """
    signal.signal(
        signal.SIGTERM,
        lambda received, _frame: sys.exit(SIGNALLED + received if code is None else code),
    )
    if number := getattr(signal, "SIGHUP", None):  # Windows has none
        # The server ends on SIGTERM by itself. An exception that is raised in the middle of an
        # answer to a browser may be taken for that answer's failure, and the server goes on.
        signal.signal(number, lambda _received, _frame: signal.raise_signal(signal.SIGTERM))
