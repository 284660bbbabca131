"""The Dockerfile, as far as it can be looked at without Docker: the program takes what it gives."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from gemma3vl_app.cli.main import app

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IMAGE = "gemma3vl"


def shown() -> list[str]:
    """The commands for the container, as the page shows them."""
    page = (ROOT / "docs" / "hosting.md").read_text(encoding="utf-8")
    return re.findall(r"^docker (?:build|run) .*$", page, re.M)


def default() -> list[str]:
    """What runs where nothing is named behind the image."""
    return json.loads(re.search(r"^CMD (.+)$", DOCKERFILE, re.M)[1])


def commands() -> list[list[str]]:
    """What runs in the container for each of the page's commands."""
    words = [shlex.split(line) for line in shown() if line.startswith("docker run ")]
    return [after[after.index(IMAGE) + 1 :] or default() for after in words]


def test_dockerfile_and_page_show_the_same_commands():
    assert shown() == re.findall(r"^# +(docker .*)$", DOCKERFILE, re.M)
    assert {each[0] for each in commands()} == {"app", "serve"}


@pytest.mark.parametrize("command", commands(), ids=shlex.join)
def test_the_program_takes_them_and_listens_where_docker_looks(command):
    name, *arguments = command
    program = get_command(app).commands[name]
    options = program.make_context(name, arguments).params
    assert options["host"] == "0.0.0.0"
    assert f"127.0.0.1:{options['port']}/healthz" in DOCKERFILE
