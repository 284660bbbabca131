"""The commands of docs/conversion.md really convert, one after the other, in one folder."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from gemma3vl_app import cli
from gemma3vl_app.conversion.formats import FORMATS
from tests.loading.peft_adapters import KINDS, save_adapter

PAGE = Path(__file__).parents[2] / "docs" / "conversion.md"


def commands():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_page_convert(small, tmp_path, monkeypatch, capsys):
    save_adapter(small, tmp_path / "runs" / "finetune" / "adapter", **KINDS["rslora"])
    monkeypatch.chdir(tmp_path)
    written = []
    for command in commands():
        if command[1] != "convert":
            continue
        target = command[-1] if "merge" in command else command[3]
        if Path(target).exists():  # the page shows two ways to the same folder
            Path(target).rename(f"{target}-before")
        # What the page calls 4b-it, which would have to be downloaded
        line = [str(small) if word == "4b-it" else word for word in command]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        assert out.strip().endswith(target)
        assert (Path(target) / "config.json").is_file()
        written.append(target)
    assert written == ["my-4b", "small-4b", "back", "my-pirate", "my-pirate"]
    once, twice = (Path(name) / "model.safetensors" for name in ("my-pirate-before", "my-pirate"))
    assert once.read_bytes() == twice.read_bytes()


def test_the_page_tells_of_every_form():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [*FORMATS]
