"""Running the program as people do, in this process."""

import logging
import sys

import pytest

from gemma3vl_app import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `gemma3vl` with arguments; return exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gemma3vl", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        logging.disable(logging.NOTSET)  # a command may have silenced it until the program's end
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run
