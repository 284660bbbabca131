"""The commands in docs/cli.md, written from the help of the program itself.

Run `python -m tests.cli.pages` in the repository's root to write them anew.
"""

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from gemma3vl_app.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
MARKED = re.compile(r"(<!-- commands: begin -->\n)(.*?)(\n<!-- commands: end -->)", re.DOTALL)
LOADING = ("weights", "device_map", "max_memory", "context_tokens", "revision", "adapter", "draft")
EXAMPLE = re.compile(r"^Example: (.+)$", re.MULTILINE)


def commands() -> Iterator[tuple[str, Any, Any]]:
    """Every command: its words ("gemma3vl cache list"), click's command, and its context."""
    root = get_command(app)
    context = root.context_class(root, info_name="gemma3vl")
    yield "gemma3vl", root, context
    yield from _below(root, context)


def _below(group: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inside = command.context_class(command, info_name=name, parent=context)
        yield inside.command_path, command, inside
        if is_group(command):
            yield from _below(command, inside)


def is_group(command: Any) -> bool:
    return hasattr(command, "commands")


def examples(command: Any) -> list[str]:
    """The command lines that a help shows."""
    return EXAMPLE.findall(inspect.cleandoc(command.help or ""))


def reference() -> str:
    """All commands with what each takes; the same for every terminal."""
    found = list(commands())
    contents = [
        f"* [`{path}`](#{path.replace(' ', '-')}): {_sentence(command)}"
        for path, command, _ in found[1:]
        if not is_group(command)
    ]
    parts = [_about(path, command, context) for path, command, context in found]
    return "\n\n".join(["\n".join(contents), *parts, _loading(found)])


def _about(path: str, command: Any, context: Any) -> str:
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    told = [" ".join(p.split()) for p in paragraphs if not EXAMPLE.match(p)]
    params = [p for p in command.get_params(context) if not getattr(p, "hidden", False)]
    usage = " ".join([path, "[OPTIONS]", *_operands(command, params)])
    parts = [f"### {path}", *(_text(paragraph) for paragraph in told), f"```text\n{usage}\n```"]
    lines = [_parameter(p, context) for p in params if p.name not in (*LOADING, "help")]
    if {p.name for p in params}.issuperset(LOADING):
        lines.append("* and how the model is loaded: see [below](#options-of-loading)")
    else:
        lines += [_parameter(p, context) for p in params if p.name in LOADING]
    if lines:
        parts.append("\n".join(lines))
    if shown := examples(command):
        parts.append("For example:\n\n```text\n" + "\n".join(shown) + "\n```")
    return "\n\n".join(parts)


def _loading(found: list[tuple[str, Any, Any]]) -> str:
    """The options of every command that loads a model; one of them shows what they say."""
    _, ask, context = next(each for each in found if each[0] == "gemma3vl ask")
    lines = [_parameter(p, context) for p in ask.params if p.name in LOADING]
    return "\n".join(["### Options of loading", "", *lines])


def _operands(command: Any, params: list[Any]) -> Iterator[str]:
    """What a usage line names after the options: MODEL, [NAME], FILES..."""
    if is_group(command):
        yield "COMMAND"
    for parameter in params:
        if parameter.param_type_name == "argument":
            name = _argument(parameter)
            yield name if parameter.required else f"[{name}]"


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name.upper()).strip("[]")
    return f"{name}..." if parameter.nargs == -1 else name


def _parameter(parameter: Any, context: Any) -> str:
    """A line such as: * `--port PORT`: Port to listen on. (default: 7860; from 1 to 65,535)"""
    if parameter.param_type_name == "argument":
        name = _argument(parameter)
    else:
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
        if not (parameter.is_flag or parameter.count):
            name += f" {parameter.metavar or _choices(parameter, context)}"
    facts = "; ".join(_facts(parameter))
    return f"* `{name}`: {_text(parameter.help or '')}{f' ({facts})' if facts else ''}"


def _choices(parameter: Any, context: Any) -> str:
    shown = str(parameter.display_type(context)).strip("<>")
    return shown if "|" in shown else parameter.name.upper().replace("_", "-")


def _facts(parameter: Any) -> Iterator[str]:
    default = parameter.default
    if parameter.required:
        yield "required"
    elif default not in (None, False, True, "", ()) and not callable(default):
        yield f"default: {default.value if hasattr(default, 'value') else default}"
    elif parameter.param_type_name == "argument":
        yield "may be left out"
    least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if least is not None and most is not None:
        yield f"from {least:,} to {most:,}"
    elif least is not None:
        yield f"at least {least:,}"
    if parameter.envvar:
        yield f"or the variable {parameter.envvar}"


def _sentence(command: Any) -> str:
    return _text(" ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split()))


def _text(text: str) -> str:
    """Text that Markdown shows as it is; what stands in backticks is left alone."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([<*_\[])", r"\\\1", p) for p in parts)


def commands_in_page() -> str:
    """What the page has between its marks."""
    found = MARKED.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None, "docs/cli.md has lost its marks"
    return found[2]


def parsed(line: str) -> None:
    """Parse a command line as the program does, without running anything; raises click's errors."""
    words = shlex.split(line, comments=True)
    words = words[: next((n for n, word in enumerate(words) if word in ("|", ">", "<")), None)]
    assert words[0] == "gemma3vl", line
    command, context, rest = get_command(app), None, words[1:]
    name = "gemma3vl"
    while True:
        context = command.make_context(name, list(rest), parent=context)
        if not is_group(command):
            return
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)


def write() -> None:
    """Write the commands into the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARKED.sub(lambda f: f[1] + reference() + f[3], text), encoding="utf-8")


if __name__ == "__main__":
    write()
