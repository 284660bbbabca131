"""The commands of a chat: one table, from which /help and completion are made."""

from __future__ import annotations

import difflib
import os
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

from gemma3vl_app.chat import Chat
from gemma3vl_app.cli.chat_talk import Talk, open_pictures
from gemma3vl_app.conversation_file import read_chat
from gemma3vl_app.errors import ConversationError, Gemma3VLError
from gemma3vl_app.messages import Message
from gemma3vl_app.pictures import Crops
from gemma3vl_app.transcript import Transcript
from gemma3vl_app.wording import summary

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".pdf")
SHORT = 60  # characters of a message in a list


@dataclass(frozen=True)
class Command:
    """A command: what /help says of it, what runs it, and whether it is followed by paths."""

    name: str
    arguments: str
    help: str
    run: Callable[[Talk, str], None]
    paths: bool = False


def handle(talk: Talk, line: str) -> None:
    """Do what a line says: a command, pictures dropped onto the terminal, or else a message.

    Raises `Gemma3VLError` for what cannot be done; the chat is as before then.
    """
    if dropped := dropped_pictures(line):
        talk.attach(open_pictures(dropped))
    elif line.startswith("//"):
        talk.send(line[1:])
    elif line.startswith("/"):
        name, _, rest = line[1:].partition(" ") if " " in line else line[1:].partition("\n")
        _command(name).run(talk, rest.strip())
    else:
        talk.send(line)


def _command(name: str) -> Command:
    found = next((command for command in COMMANDS if command.name == name.lower()), None)
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), [command.name for command in COMMANDS], n=1)
    hint = f"Did you mean /{near[0]}?" if near else "/help lists them."
    raise ConversationError(
        f"There is no command /{name[:SHORT]}. {hint} "
        "To send text that begins with a slash, begin it with two."
    )


# --- paths ----------------------------------------------------------------------------------------


def paths_in(text: str) -> list[Path]:
    """Return the paths that `text` names, as people type them and terminals paste them.

    Quotes, backslashes before spaces, ~ and file:// are understood; one path that exists may hold
    spaces as it is.
    """
    whole = text.strip()
    if not whole:
        return []
    if os.path.exists(_path(whole)):
        return [_path(whole)]
    try:
        words = shlex.split(whole, posix=os.name != "nt")
    except ValueError:  # a quotation mark or a backslash that is part of the name
        words = [whole]
    return [_path(word.strip('"') if os.name == "nt" else word) for word in words]


def _path(word: str) -> Path:
    if word.startswith("file://"):
        word = unquote(word.removeprefix("file://").removeprefix("localhost"))
    return Path(os.path.expanduser(word))


def dropped_pictures(line: str) -> list[Path]:
    """Return the pictures a line consists of; none unless each word is one that exists."""
    if "\n" in line or not line.rstrip("\"' ").lower().endswith(PICTURE_ENDINGS):
        return []
    paths = paths_in(line)
    fit = all(p.suffix.lower() in PICTURE_ENDINGS and os.path.isfile(p) for p in paths)
    return paths if fit else []


def _one_path(text: str, command: str) -> Path:
    paths = paths_in(text)
    if len(paths) != 1:
        raise ConversationError(f"/{command} takes one file. Put quotes around a name with spaces.")
    return paths[0]


# --- pictures -------------------------------------------------------------------------------------


def _image(talk: Talk, text: str) -> None:
    if text == "-":
        talk.attached = []
        talk.screen.note("No picture is attached.")
    elif text:
        talk.attach(open_pictures(paths_in(text)))
    else:
        _images(talk, text)


def _images(talk: Talk, text: str) -> None:
    if talk.attached:
        talk.screen.show(talk.attached)
    else:
        talk.screen.note("No picture is attached. /image PATH attaches one to your next message.")


def _crops(talk: Talk, text: str) -> None:
    for choice in get_args(Crops):
        if choice == text.lower():
            talk.crops = choice
    if text and talk.crops != text.lower():
        raise ConversationError(f"Crops can be auto, on or off, not {text[:SHORT]!r}.")
    talk.screen.note(f"Crops of pictures sent from now on: {talk.crops}.")


# --- what is said ---------------------------------------------------------------------------------


def _system(talk: Talk, text: str) -> None:
    if not text:
        talk.screen.note(talk.chat.system or "There is no system text. /system TEXT sets one.")
        return
    talk.chat.system = None if text == "-" else text
    done = "gone" if text == "-" else "set"
    talk.screen.note(
        f"The system text is {done}. It holds for the whole conversation, from the next answer on."
    )


def _undo(talk: Talk, text: str) -> None:
    talk.chat.undo()
    talk.unsaved = True
    _show_place(talk)


def _retry(talk: Talk, text: str) -> None:
    talk.retry()


def _edit(talk: Talk, text: str) -> None:
    if not text:
        raise ConversationError("Say what your last message shall be: /edit TEXT.")
    talk.edit(text)


def _resume(talk: Talk, text: str) -> None:
    talk.resume()


def _branch(talk: Talk, text: str) -> None:
    if not text:
        _list_messages(talk)
        return
    try:
        number, *version = (int(word) for word in text.split())
    except ValueError as error:
        raise ConversationError("/branch takes a message's number, and a version's.") from error
    if len(version) > 1:
        raise ConversationError("/branch takes a message's number, and at most one version's.")
    count = len(talk.chat.conversation.messages)
    if not (0 if not version else 1) <= number <= count:
        raise ConversationError(f"There is no message {number}; this chat has {count}.")
    if version:
        _switch(talk, number, version[0])
    else:
        talk.go_to(number)
    talk.unsaved = True
    _show_place(talk)


def _switch(talk: Talk, number: int, version: int) -> None:
    versions = len(talk.chat.versions(number - 1))
    if not 1 <= version <= versions:
        raise ConversationError(
            f"Message {number} has no version {version}, but {versions} in all."
        )
    talk.chat.switch(number - 1, version - 1)


def _list_messages(talk: Talk) -> None:
    rows = []
    for index, message in enumerate(talk.chat.conversation.messages):
        versions = talk.chat.versions(index)
        shown = next(n for n, version in enumerate(versions, start=1) if version is message)
        several = f"version {shown} of {len(versions)}" if len(versions) > 1 else ""
        rows.append((str(index + 1), _speaker(message), _short(message), several))
    if rows:
        talk.screen.table(rows)
    else:
        talk.screen.note("Nothing has been said yet.")


def _show_place(talk: Talk) -> None:
    """Show where the chat stands: the last question in short, and its answer."""
    messages = talk.chat.conversation.messages
    if not messages:
        talk.screen.note("The chat is at its beginning.")
        return
    talk.screen.note(f"The chat is at message {len(messages)}:")
    for message in messages[-2:]:
        last_word = message is messages[-1] and message.role == "assistant"
        talk.screen.note(f"{_speaker(message)}: {message.text if last_word else _short(message)}")


def _speaker(message: Message) -> str:
    return "you" if message.role == "user" else "model"


def _short(message: Message) -> str:
    names = [f"[{picture.name}]" for picture in message.pictures]
    return textwrap.shorten(" ".join([*names, message.text]), SHORT, placeholder=" …")


# --- files ----------------------------------------------------------------------------------------


def _save(talk: Talk, text: str, *, over: bool = False) -> None:
    if not talk.chat.conversation.messages and not talk.unsaved:
        raise ConversationError("There is nothing to save yet.")
    default = talk.saved_as or Path(f"chat-{datetime.now():%Y-%m-%d-%H%M}.chat.zip")
    path = _one_path(text, "save") if text else default
    own = talk.saved_as is not None and path.absolute() == talk.saved_as.absolute()
    if os.path.lexists(path) and not (own or over):
        raise ConversationError(
            f"There is a file {path.name!r} already. Choose another name, or replace it: "
            f"/save! {shlex.quote(text or str(path))}"
        )
    talk.saved_as = talk.chat.save(path, overwrite=own or over)
    talk.unsaved = False
    talk.screen.note(f"Saved as {path.name}.")


def _save_over(talk: Talk, text: str) -> None:
    _save(talk, text, over=True)


def _open(talk: Talk, text: str, *, over: bool = False) -> None:
    path = _one_path(text, "open")
    if talk.unsaved and not over:
        raise ConversationError(
            "This chat is not saved and would be lost. /save it, or go on without it: "
            f"/open! {text}"
        )
    go_on_with(talk, read_chat(path), path)


def _open_over(talk: Talk, text: str) -> None:
    _open(talk, text, over=True)


def go_on_with(talk: Talk, saved: Transcript, path: Path) -> None:
    """Go on with the chat that was read from the file `path`, and show where it stands."""
    talk.take(Chat.from_transcript(saved, talk.backend, session=talk.chat.session), path)
    _show_place(talk)


# --- the rest -------------------------------------------------------------------------------------


def _stats(talk: Talk, text: str) -> None:
    about, conversation = talk.backend.capabilities, talk.chat.conversation
    plan = talk.backend.plan
    used = 0
    if conversation.messages:
        try:
            used = talk.backend.preview(conversation, session=talk.chat.session).prompt_tokens
        except Gemma3VLError:  # it does not fit any more; the last answer says what it took
            used = talk.last.usage.prompt_tokens if talk.last else 0
    asked = sum(message.role == "user" for message in conversation.messages)
    rows = [
        ("model", about.title or about.model),
        ("weights", about.weights or (plan.weights if plan else "")),
        ("context", f"{used:,} of {about.context_tokens:,} tokens"),
        ("turns", str(asked)),
        ("pictures", f"{len(conversation.pictures)}, {len(talk.attached)} more attached"),
        ("tokens", f"{talk.computed_tokens:,} computed, {talk.cached_tokens:,} reused"),
        ("last answer", summary(talk.last) if talk.last else ""),
    ]
    talk.screen.table(row for row in rows if row[1])


def _help(talk: Talk, text: str) -> None:
    talk.screen.table((f"/{c.name} {c.arguments}".rstrip(), c.help) for c in COMMANDS)
    talk.screen.note("Two slashes begin a message that starts with one. " + KEYS)


def _quit(talk: Talk, text: str) -> None:
    talk.ended = True


KEYS = "Ctrl-C stops an answer, Alt-Enter begins a new line, Ctrl-R searches, Ctrl-D ends."
COMMANDS = (
    Command("image", "PATH …", "attach pictures to your next message; - drops them", _image, True),
    Command("images", "", "show what is attached", _images),
    Command("crops", "auto|on|off", "send parts of large pictures enlarged, too", _crops),
    Command("system", "[TEXT]", "show or set how the model shall behave; - drops it", _system),
    Command("retry", "", "answer again; the old answer stays as a version", _retry),
    Command("edit", "TEXT", "say your last message differently, its pictures kept", _edit),
    Command("resume", "", "go on with an answer that was cut", _resume),
    Command("undo", "", "go back before your last message", _undo),
    Command("branch", "[N [V]]", "list messages; go back to N; show version V of N", _branch),
    Command("stats", "", "tell about the model, the context and what was computed", _stats),
    Command("save", "[FILE]", "save the chat with its branches and pictures", _save, True),
    Command("save!", "[FILE]", "the same, and replace a file that exists", _save_over, True),
    Command("open", "FILE", "go on with a saved chat", _open, True),
    Command("open!", "FILE", "the same, though this chat is not saved", _open_over, True),
    Command("help", "", "show this", _help),
    Command("quit", "", "end the chat", _quit),
)
