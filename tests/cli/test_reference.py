"""Every help ends with an example that parses, and docs/cli.md says what the help says."""

import inspect
import re

import pytest
from typer._click.exceptions import ClickException

from gemma3vl_app.cli import exit_codes
from tests.cli.pages import PAGE, commands, commands_in_page, examples, is_group, parsed, reference

COMMANDS = [(path, command) for path, command, _ in commands() if not is_group(command)]
named = pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
NOTHING_BUT_WORDS = re.compile(r"\W+")


@named
def test_every_command_has_an_example_that_parses(path, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert examples(command), f"the help of `{path}` has no line `Example: {path} ...`"
    for line in examples(command):
        assert line.startswith(path)
        for word in re.findall(r"[\w/-]+\.\w+", line):  # files that an option may want to exist
            (tmp_path / word.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word.lstrip("/")).touch()
        parsed(line)


@pytest.mark.parametrize(
    "wrong",
    [
        "gemma3vl plan 4b-it --gpus t4",
        "gemma3vl cache lst",
        "gemma3vl plan",
        "gemma3vl app --port x",
    ],
)
def test_a_wrong_example_would_be_noticed(wrong):
    with pytest.raises(ClickException):
        parsed(wrong)


@named
def test_the_help_says_all_that_was_written(path, command, run, monkeypatch):
    # In rich's markup, text in square brackets could vanish.
    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = run(*path.split()[1:], "--help")
    shown = NOTHING_BUT_WORDS.sub(" ", out)
    texts = [inspect.cleandoc(command.help), *(p.help for p in command.params)]
    for text in texts:
        assert NOTHING_BUT_WORDS.sub(" ", text).strip() in shown
    assert code == 0


# What the value of an option is called: as few words as will do.
KINDS = {"TEXT", "FILE", "NUMBER", "NAME", "MODEL", "KIND", "DEVICE", "SIZE", "SIZES", "ADDRESS"}
KINDS |= {"NUMBERS", "FOLDER", "FOLDERS", "NAME=PATH", "NAME:PASSWORD"}


@named
def test_what_an_option_takes_is_said_in_few_words(path, command):
    takes = {
        parameter.opts[0]: parameter.metavar
        for parameter in command.params
        if parameter.param_type_name == "option"
        and not (parameter.is_flag or parameter.type_descriptor.is_choice)
    }
    assert {name: kind for name, kind in takes.items() if kind not in KINDS} == {}


def test_where_one_picture_is_enough_the_example_shows_one_that_is_there():
    words = {word for _, command in COMMANDS for line in examples(command) for word in line.split()}
    assert {word for word in words if "circle." in word} == {"docs/circle.png"}
    assert (PAGE.parent / "circle.png").is_file()


def test_every_option_is_explained():
    for path, command in COMMANDS:
        silent = [parameter.name for parameter in command.params if not parameter.help]
        assert not silent, f"{path}: {silent}"


def test_the_page_says_what_the_help_says_now():
    message = "run `python -m tests.cli.pages` to write it anew"
    assert commands_in_page() == reference(), message


def test_the_reference_does_not_depend_on_the_terminal(monkeypatch):
    texts = set()
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("FORCE_COLOR", "1")
        texts.add(reference())
    assert len(texts) == 1
    assert "\x1b" not in texts.pop()


def test_every_command_has_a_section_and_is_listed():
    text = commands_in_page()
    for path, _ in COMMANDS:
        assert f"\n### {path}\n" in text
        assert f"(#{path.replace(' ', '-')})" in text


def test_every_exit_code_is_explained():
    codes = {name: value for name, value in vars(exit_codes).items() if name.isupper()}
    page = PAGE.read_text(encoding="utf-8")
    assert len(codes) >= 6
    for name, value in codes.items():
        assert f"| {value} | {name} |" in page
