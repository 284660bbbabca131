"""What the terminal says of an error: one line, in the words of the command line."""

from __future__ import annotations

import re

import typer

PROGRAM = "gemma3vl"
# The library's errors name arguments as Python does; whoever sits at a terminal has options.
OPTIONS = {
    "adapter": "--adapter",
    "adapters": "--adapter",
    "branches": "--branches",
    "context_tokens": "--context-tokens",
    "data": "--data",
    "deep": "--deep",
    "device_map": "--device-map",
    "find_port": "--find-port",
    "max_difference": "--max-difference",
    "max_kl": "--max-kl",
    "max_mean_kl": "--max-mean-kl",
    "max_memory": "--max-memory",
    "max_new_tokens": "--max-new-tokens",
    "min_top1": "--min-top1",
    "overwrite": "--force",
    "recursive": "--recursive",
    "restart": "--restart",
    "retry_failed": "--retry-failed",
    "seed": "--seed",
    "shard_bytes": "--shard-size",
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "weights": "--weights",
}
_NAMES = "|".join(OPTIONS)
_IN_CODE = "|".join(name for name in OPTIONS if "_" in name)  # these are no words of English
_NOT_IN_A_NAME = r"(?<![\w'\"`./-])"  # the name of a file may be anything
_WITH_VALUE = re.compile(rf"{_NOT_IN_A_NAME}({_NAMES})=(?:'([^']*)'|(\w+))")
_ALONE = re.compile(rf"^({_NAMES})(?= is )|{_NOT_IN_A_NAME}({_IN_CODE})(?![\w'\"`/]|\.\w)")


def in_options(message: str) -> str:
    """Return a message of the library with options in place of Python's arguments.

    "weights='fp32'" becomes "--weights fp32", "recursive=True" "--recursive", "top_k" "--top-k".
    Plain words such as "weights" alone stay, and so does what stands in quotation marks.
    """

    def with_value(found: re.Match[str]) -> str:
        option, value = OPTIONS[found[1]], found[2] if found[3] is None else found[3]
        return option if value == "True" else f"{option} {value}"

    told = _WITH_VALUE.sub(with_value, message).replace("Greedy()", "--greedy")
    return _ALONE.sub(lambda found: OPTIONS[found[1] or found[2]], told)


def usage_line(error: typer.TyperException) -> str:
    """Return what is wrong with a command line and what to do; empty where a help was shown."""
    if isinstance(error, typer.BadParameter) and error.param is None:  # raised by a command
        return f"{PROGRAM}: {error.message}"
    said = " ".join(error.format_message().replace("Value error, ", "").split())
    if not said:
        return ""
    said += "" if said.endswith((".", "?")) else "."
    context = getattr(error, "ctx", None)
    command = PROGRAM if context is None else context.command_path
    listed = "options" if context and not hasattr(context.command, "commands") else "commands"
    return f"{PROGRAM}: {said} Run `{command} --help` to see the {listed}."
