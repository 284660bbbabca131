"""`gemma3vl serve`: the API and the chat page from one server, until it is ended."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma3vl_app import catalog
from gemma3vl_app.cli import exit_codes, load, page
from gemma3vl_app.planning.wishes import parse_bytes

if TYPE_CHECKING:
    from gemma3vl_app.remote_pictures import RemotePictures
    from gemma3vl_app.server import ApiOptions

KeysFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the API's keys, one a line. Or set GEMMA3VL_API_KEYS, separated by commas.",
        metavar="FILE",
    ),
]
NoPage = Annotated[bool, typer.Option("--no-page", help="Serve the API only.")]
MaxBody = Annotated[str, typer.Option(help="Largest request.", metavar="SIZE")]
MaxPictures = Annotated[
    int, typer.Option(min=0, help="Most pictures in a request.", metavar="NUMBER")
]
MaxAnswerTokens = Annotated[
    int, typer.Option(min=1, help="Most tokens that a request may ask for.", metavar="NUMBER")
]
MaxChoices = Annotated[
    int, typer.Option(min=1, help="Most answers to one request (n).", metavar="NUMBER")
]
AtOnce = Annotated[
    int, typer.Option(min=1, help="Requests answered or waiting at once.", metavar="NUMBER")
]
AtOncePerKey = Annotated[
    int,
    typer.Option(min=1, help="The same for a key, or an address without keys.", metavar="NUMBER"),
]
PerMinute = Annotated[
    int, typer.Option(min=1, help="Requests a minute for one key or address.", metavar="NUMBER")
]
MediaDomains = Annotated[
    str | None,
    typer.Option(
        help="Hosts from which pictures are fetched, by exact names with commas. Default: none.",
        metavar="NAME",
    ),
]
FinishSec = Annotated[
    float,
    typer.Option(
        min=0, help="Seconds that answers may go on once the server is to end.", metavar="NUMBER"
    ),
]


def serve(
    model: load.ModelOption = "demo",
    host: page.Host = "127.0.0.1",
    port: page.Port = 7860,
    find_port: page.FindPort = False,
    keys_file: KeysFile = None,
    no_page: NoPage = False,
    auth: page.Auth = None,
    no_auth: page.NoAuth = False,
    conversations: page.Conversations = None,
    forget: page.Forget = False,
    offer: page.Offer = None,
    max_body: MaxBody = "32MiB",
    max_pictures: MaxPictures = 20,
    max_answer_tokens: MaxAnswerTokens = 8192,
    max_choices: MaxChoices = 4,
    at_once: AtOnce = 64,
    at_once_per_key: AtOncePerKey = 32,
    per_minute: PerMinute = 600,
    finish_sec: FinishSec = 30,
    allowed_media_domains: MediaDomains = None,
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    context_tokens: load.ContextTokens = None,
    revision: load.Revision = None,
    adapter: load.Adapters = None,
    draft: load.Draft = None,
) -> None:
    """Serve the model to programs, as OpenAI's API does, with the chat page beside it.

    Ends with Ctrl-C or SIGTERM, after the answers that run. docs/api.md says how to talk to it.

    Example: gemma3vl serve --model 4b-it --keys-file keys.txt
    """
    wishes = load.read_wishes(
        weights, device_map, max_memory, context_tokens, revision, adapter, draft
    )
    for source in (model, *(offer or ())):
        catalog.check_source(source, servers=True)
    logins = [page.read_login(each) for each in auth or ()]
    with load.mistakes():
        largest_bytes = parse_bytes(max_body)
    with load.spinner("Starting"):  # importing the page's library takes seconds
        from gemma3vl_app import server
        from gemma3vl_app.api.keys import ENVIRONMENT, read_keys
        from gemma3vl_app.api.limits import ApiLimits
        from gemma3vl_app.manager import ModelManager
        from gemma3vl_app.store import default_folder
    remote = _remote_pictures(allowed_media_domains)
    with load.mistakes():
        options = server.ApiOptions(
            remote_pictures=remote,
            keys=read_keys(keys_file, os.environ.get(ENVIRONMENT)),
            limits=ApiLimits(
                body_bytes=largest_bytes,
                pictures=max_pictures,
                answer_tokens=max_answer_tokens,
                choices=max_choices,
                requests_at_once=at_once,
                requests_at_once_per_caller=at_once_per_key,
                requests_per_minute=per_minute,
                finish_sec=finish_sec,
            ),
        )
    _check_doors(options, logins, no_page=no_page)
    server.check_access(host, logins, no_auth=no_auth, keys=options.keys)
    server.check_port(host, port, find_port=find_port)  # before the model is loaded for nothing
    page.end_tidily_on_signals()
    with ModelManager() as manager:
        backend = load.load_backend(model, wishes, manager)

        def on_ready(address: str) -> None:
            page.end_tidily_on_signals(exit_codes.OK)  # from now on SIGTERM is no failure
            typer.echo(f"{model} is ready: {address}")
            typer.echo(_curl(address, backend.capabilities.model, with_key=bool(options.keys)))

        server.serve(
            backend,
            manager=manager,
            offered=offer or (),
            host=host,
            port=port,
            find_port=find_port,
            logins=logins,
            no_auth=no_auth,
            conversations=None if forget or no_page else conversations or default_folder(),
            page=not no_page,
            api=options,
            on_ready=on_ready,
        )


def _remote_pictures(domains: str | None) -> RemotePictures | None:
    """Return what fetches pictures from the hosts named, None where none is."""
    from gemma3vl_app.remote_pictures import RemotePictures

    if domains is None:
        return None
    try:
        return RemotePictures(domains.split(","))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--allowed-media-domains") from error


def _check_doors(options: ApiOptions, logins: list[tuple[str, str]], *, no_page: bool) -> None:
    """Tell of logins and keys that leave something closed which was probably meant to be open."""
    if no_page and logins:
        raise typer.BadParameter("--auth is for the page, which --no-page leaves out.")
    if logins and not options.keys:
        load.stderr.print("The API is closed: it has no keys. Set GEMMA3VL_API_KEYS.")
    if options.keys and not logins and not no_page:
        load.stderr.print("The page is closed: it has no login. Set GEMMA3VL_AUTH, or --no-page.")


def _curl(address: str, model: str, *, with_key: bool) -> str:
    """Return a line for the terminal that asks the model something."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
    key = " -H 'Authorization: Bearer YOUR_KEY'" if with_key else ""
    return (
        f"curl {address}/v1/chat/completions{key} "
        f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    )
