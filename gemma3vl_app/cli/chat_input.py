"""Where the lines of a chat come from: typed at a prompt, or read from a pipe.

Knows which commands there are, for completion, and nothing of what they do.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.output.defaults import create_output
from prompt_toolkit.shortcuts import CompleteStyle

from gemma3vl_app.cli.chat_commands import COMMANDS
from gemma3vl_app.loading.cache import cache_root

_LAST_WORD = re.compile(r"""(?:\\.|[^\s\\])*$""")  # backslashes keep spaces inside a word
_ESCAPED = re.compile(r"""([\s\\'"])""")


def piped_lines() -> Iterator[str]:
    """Yield the lines of stdin, empty ones left out, as they come."""
    if sys.stdin is None:
        return
    if reconfigure := getattr(sys.stdin, "reconfigure", None):
        reconfigure(errors="replace")  # one bad byte is no reason to end
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\r\n")


class Prompt:
    """Lines typed by a person, with history, completion and the usual keys of a line editor.

    `label` is asked before each line what stands before it, `typed` for text that was typed
    already, `idle` is called for a Ctrl-C on an empty line.
    """

    def __init__(
        self,
        *,
        label: Callable[[], str],
        typed: Callable[[], str] = str,
        idle: Callable[[], None] = lambda: None,
        history: History | None = None,
        source: Input | None = None,
        target: Output | None = None,
    ) -> None:
        self._label, self._typed, self._idle = label, typed, idle
        self._session: PromptSession[str] = PromptSession(
            history=line_history() if history is None else history,
            completer=ChatCompleter(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            key_bindings=_keys(),
            multiline=True,  # so that pasted lines arrive together; Enter sends nevertheless
            prompt_continuation=lambda width, number, wraps: " " * width,
            enable_suspend=True,
            input=source,
            output=target or create_output(always_prefer_tty=True),
        )

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                label = FormattedText([("bold", self._label())])
                line = self._session.prompt(label, default=self._typed())
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    self._idle()
                continue
            except EOFError:
                return
            if line.strip():
                yield line.rstrip()  # what is pasted often ends in a line break


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


# --- history --------------------------------------------------------------------------------------


def line_history() -> History:
    """Return the lines of earlier chats, kept beside the cache for this user's eyes only."""
    path = cache_root() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        os.chmod(path, 0o600)
    except OSError:
        return InMemoryHistory()
    return _FileHistory(path)


class _FileHistory(FileHistory):
    """A history that a full disk does not end a chat over."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return super().load_history_strings()
        except OSError:
            return ()

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


# --- completion -----------------------------------------------------------------------------------


class ChatCompleter(Completer):
    """Completes the names of commands, and paths after the commands that take them."""

    def __init__(self, folder: Path | None = None) -> None:
        here = str(folder or ".")
        self._paths = PathCompleter(expanduser=True, get_paths=lambda: [here])

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Yield what may follow the text before the cursor."""
        text = document.text_before_cursor
        name, space, rest = text.partition(" ")
        if not text.startswith("/"):
            return
        if not space:
            for command in COMMANDS:
                if f"/{command.name}".startswith(name.lower()):
                    yield Completion(f"/{command.name}", -len(name), display_meta=command.help)
        elif any(f"/{command.name}" == name.lower() and command.paths for command in COMMANDS):
            yield from self._path_completions(rest, event)

    def _path_completions(self, rest: str, event: CompleteEvent) -> Iterator[Completion]:
        found = _LAST_WORD.search(rest)
        typed = re.sub(r"\\(.)", r"\1", found[0] if found else "")
        for each in self._paths.get_completions(Document(typed), event):
            ending = "/" if each.display_text.endswith("/") else ""
            yield Completion(_ESCAPED.sub(r"\\\1", each.text) + ending, 0, display=each.display)
