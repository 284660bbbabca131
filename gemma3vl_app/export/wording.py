"""What an export says about a chat: its title, names, and how each answer came about."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath

from gemma3vl_app.generation import Greedy, Sampling
from gemma3vl_app.transcript import Generated, Turn

_TITLE_CHARS = 60
_ENDS = {"stop": "by itself", "length": "cut at its limit", "cancelled": "stopped by hand"}
_DIRECTIONS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Return `text` with line breaks as "\\n" and U+FFFD for other controls and half characters.

    Such a text can be written as UTF-8, and holds no escape sequences for terminals.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text
    )


def writable(text: str) -> str:
    """Return `text` with U+FFFD for half characters, which UTF-8 cannot hold."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def one_line(text: str) -> str:
    """Return `text` as one printable line that keeps its direction of writing to itself."""
    text = "".join(c for c in printable(text) if c not in _DIRECTIONS)
    return " ".join(text.split())


def title(turns: Sequence[Turn]) -> str:
    """Return the first words of the first question, or the name of its picture."""
    for turn in turns:
        if words := one_line(turn.message.text):
            return shortened(words)
    names = [picture.name for turn in turns for picture in turn.message.pictures]
    return shortened(one_line(names[0]) if names else "") or "A conversation"


def contents(turns: Sequence[Turn]) -> str:
    """Return a line such as "demo · 2 questions · 1 picture"."""
    models = dict.fromkeys(speaker(turn) for turn in turns if turn.generated)
    questions = sum(turn.message.role == "user" for turn in turns)
    pictures = sum(len(turn.message.pictures) for turn in turns)
    counts = [(questions, "question"), (pictures, "picture")]
    return " · ".join(
        [*models, *(f"{n:,} {what}{'' if n == 1 else 's'}" for n, what in counts if n)]
    )


def shortened(line: str) -> str:
    """Return the first words of `line`, with an ellipsis where something is left out."""
    if len(line) <= _TITLE_CHARS:
        return line
    head = line[:_TITLE_CHARS]
    return (head.rpartition(" ")[0] or head) + " …"


def speaker(turn: Turn) -> str:
    """Return who speaks: "User", the model's name, or "Assistant" for a given answer."""
    if turn.message.role == "user":
        return "User"
    return shortened(model_name(turn.generated[-1])) if turn.generated else "Assistant"


def model_name(generated: Generated) -> str:
    """Return the model's name, without the folders of the machine that it was on."""
    name = generated.model.name
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        name = PureWindowsPath(name).name  # it knows both kinds of slashes
    return one_line(name) or "Assistant"


def summary(turn: Turn) -> str:
    """Return one short line about a generated answer: "7 tokens, greedy, cut at its limit"."""
    last = turn.generated[-1]
    count = sum(each.usage.completion_tokens or len(each.ids) for each in turn.generated)
    words = [f"{count:,} token{'' if count == 1 else 's'}", _sampling(last.sampling)]
    if last.adapter is not None:
        words.insert(0, f"adapter {shortened(one_line(last.adapter))}")
    if last.finish_reason != "stop":
        words.append(_ENDS[last.finish_reason])
    return ", ".join(words)


def facts(generated: Generated) -> list[tuple[str, str]]:
    """Return what is known about one call of the model, as names and values."""
    model, usage, timing = generated.model, generated.usage, generated.timing
    rows = [
        ("Model", model_name(generated)),
        ("Revision", model.revision),
        ("Weights", model.weights),
        ("Arithmetic", model.arithmetic),
        ("Adapter", generated.adapter or ""),
        ("Sampling", _sampling(generated.sampling)),
        ("Limit", f"{generated.max_new_tokens:,} tokens"),
        ("Stops at", ", ".join(json.dumps(stop, ensure_ascii=False) for stop in generated.stop)),
        ("JSON schema", "" if generated.schema is None else _as_json(generated.schema)),
        ("Ended", _ENDS[generated.finish_reason]),
        (
            "Prompt",
            f"{usage.prompt_tokens:,} tokens, {usage.image_tokens:,} of them pictures, "
            f"{usage.cached_tokens:,} cached"
            if usage.prompt_tokens
            else "",
        ),
        ("Answer", f"{usage.completion_tokens or len(generated.ids):,} tokens"),
        (
            "Time",
            f"first token after {timing.ttft_sec:.2f} s, {timing.tokens_per_sec:.1f} tokens/s"
            if timing.ttft_sec
            else "",
        ),
    ]
    return [(name, one_line(value)) for name, value in rows if value]


def _as_json(schema: object) -> str:
    return json.dumps(schema, ensure_ascii=False, default=dict)


def _sampling(sampling: Sampling) -> str:
    if isinstance(sampling, Greedy):
        return "greedy"
    words = [f"temperature {sampling.temperature:g}"]
    if sampling.top_k:
        words.append(f"top-k {sampling.top_k}")
    if sampling.top_p < 1:
        words.append(f"top-p {sampling.top_p:g}")
    words.append("no seed" if sampling.seed is None else f"seed {sampling.seed}")
    return ", ".join(words)
