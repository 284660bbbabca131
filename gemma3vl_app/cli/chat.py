"""`gemma3vl chat`: a conversation in the terminal, or one over a pipe."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemma3vl_app import catalog
from gemma3vl_app.cli import exit_codes, load, one_shot
from gemma3vl_app.errors import ConversationError, Gemma3VLError
from gemma3vl_app.generation import Greedy, Sample, Sampling

if TYPE_CHECKING:
    from gemma3vl_app.backends.protocol import StreamOptions
    from gemma3vl_app.cli.chat_talk import Talk

_log = logging.getLogger(__name__)


def chat(
    model: load.ModelArgument = "demo",
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image", help="A picture for your first message; repeat it for more.", metavar="FILE"
        ),
    ] = None,
    system: one_shot.System = None,
    open_file: Annotated[
        Path | None,
        typer.Option("--open", help="Go on with a chat that /save saved.", metavar="FILE"),
    ] = None,
    greedy: one_shot.GreedyFlag = False,
    seed: one_shot.Seed = None,
    temperature: one_shot.Temperature = None,
    top_k: one_shot.TopK = None,
    top_p: one_shot.TopP = None,
    max_new_tokens: one_shot.MaxNewTokens = None,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Show pictures by name and size only.")
    ] = False,
    weights: load.Weights = "auto",
    device_map: load.DeviceMap = "auto",
    max_memory: load.MaxMemory = None,
    context_tokens: load.ContextTokens = None,
    revision: load.Revision = None,
    adapter: load.Adapters = None,
    draft: load.Draft = None,
    disk_cache: load.DiskCache = None,
) -> None:
    """Talk with a model about pictures, over as many messages as you like.

    /help lists the commands of a chat. Without a terminal, each line of stdin is a message or a
    command, and stdout gets the answers only. With one --adapter, the answers are that adapter's.

    Example: gemma3vl chat demo --image docs/circle.png
    """
    wishes = load.read_wishes(
        *(weights, device_map, max_memory, context_tokens, revision, adapter, draft, disk_cache)
    )
    given = {"seed": seed, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    drawing: dict[str, Any] = {name: wish for name, wish in given.items() if wish is not None}
    one_shot.check_sampling(drawing, greedy=greedy)
    if open_file is not None and not open_file.is_file():
        raise ConversationError(f"There is no file {open_file.name!r} to open. Check its path.")
    catalog.check_source(model, servers=True)
    with load.spinner("Starting"):
        from gemma3vl_app.chat import Chat
        from gemma3vl_app.cli.chat_commands import go_on_with
        from gemma3vl_app.cli.chat_screen import Screen
        from gemma3vl_app.cli.chat_talk import Talk, open_pictures
        from gemma3vl_app.conversation_file import read_chat

        pictures = open_pictures(image or ())
        opened = None if open_file is None else read_chat(open_file)  # before a model is loaded
    screen = Screen(interactive=_is_interactive(), pictures=not no_pictures)
    with load.load_backend(model, wishes) as backend:
        names = list(wishes.adapters or ())
        options: StreamOptions = {
            "max_new_tokens": max_new_tokens or backend.capabilities.answer_tokens,
            "adapter": names[0] if len(names) == 1 else None,
        }
        talk = Talk(backend, Chat(backend), screen, options)
        if screen.interactive:
            _greet(talk)
        if open_file is not None and opened is not None:
            go_on_with(talk, opened, open_file)
        if system is not None:
            talk.chat.system = system
        talk.chat.sampling = _sampling(greedy, drawing, talk.sampling) or talk.chat.sampling
        talk.attach(pictures)
        failures = _converse(talk, _lines(talk))
    if failures and not screen.interactive:
        raise typer.Exit(exit_codes.INCOMPLETE)


def _is_interactive() -> bool:
    """Whether a person types, and sees what is told; the answers may go elsewhere."""
    told = any(out is not None and out.isatty() for out in (sys.stdout, sys.stderr))
    return told and sys.stdin is not None and sys.stdin.isatty()


def _sampling(greedy: bool, drawing: dict[str, Any], own: Sampling) -> Sampling | None:
    """Return what the options ask for, on top of the `own` way of chat or checkpoint."""
    if greedy:
        return Greedy()
    if not drawing:
        return None
    return replace(own if isinstance(own, Sample) else Sample(), **drawing)


def _greet(talk: Talk) -> None:
    about = talk.backend.capabilities
    talk.screen.note(about.title or about.model, style="bold")
    talk.screen.note(f"{about.knows} /help lists the commands, Ctrl-D ends.")


def _lines(talk: Talk) -> Iterable[str]:
    from gemma3vl_app.cli.chat_input import Prompt, piped_lines

    def label() -> str:
        count = len(talk.attached)
        return f"({count} picture{'s' if count > 1 else ''}) > " if count else "> "

    if not talk.screen.interactive:
        return piped_lines()
    idle = partial(talk.screen.note, "Ctrl-D or /quit ends the chat.")
    return Prompt(label=label, typed=talk.screen.take_typed, idle=idle)


def _converse(talk: Talk, lines: Iterable[str]) -> int:
    """Handle line after line until one ends the chat; return how many could not be handled."""
    from gemma3vl_app.cli.chat_commands import handle

    failures = 0
    for line in lines:
        try:
            handle(talk, line)
        except Gemma3VLError as error:
            failures += 1
            talk.screen.error(str(error))
        except KeyboardInterrupt:  # while something else than an answer was under way
            if not talk.screen.interactive:
                raise
            talk.screen.note("interrupted")
        except BrokenPipeError:  # nobody reads the answers any more
            raise
        except Exception as error:  # a bug must not take a long conversation with it
            failures += 1
            _log.debug("a line of a chat failed", exc_info=True)
            talk.screen.error(
                f"Something went wrong inside ({type(error).__name__}). The chat goes on; "
                "`gemma3vl --debug chat ...` shows where."
            )
        if talk.ended:
            break
    return failures
