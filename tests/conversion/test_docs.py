"""The commands of docs/conversion.md really convert, one after the other, in one folder."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemma3vl_app import cli
from gemma3vl_app.conversion.formats import FORMATS
from gemma3vl_app.conversion.options import GGUF_TYPES
from tests.loading.peft_adapters import KINDS, save_adapter

PAGE = Path(__file__).parents[2] / "docs" / "conversion.md"


def commands():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_page_convert(few_tokens, tmp_path, monkeypatch, capsys):
    save_adapter(few_tokens, tmp_path / "runs" / "finetune" / "adapter", **KINDS["rslora"])
    monkeypatch.chdir(tmp_path)
    written = []
    for command in commands():
        if command[0] == "find":
            (trained,) = tmp_path.glob("my-megatron/release")  # as a training would leave one
            shutil.copytree(trained, tmp_path / "runs" / "megatron" / "iter_0000120")
            subprocess.run(command, check=True, cwd=tmp_path)
            copied = {each.name for each in Path("runs/megatron").iterdir() if each.is_file()}
            assert {"config.json", "tokenizer.json"} <= copied
            assert not copied & {"conversion.json", "latest_checkpointed_iteration.txt"}
        if command[:2] != ["gemma3vl", "convert"]:
            continue
        target = command[-1] if "merge" in command else command[3]
        if Path(target).exists():  # the page shows two ways to the same folder
            Path(target).rename(f"{target}-before")
        # What the page calls 4b-it, which would have to be downloaded
        line = [str(few_tokens) if word == "4b-it" else word for word in command]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        assert out.strip().endswith(target)
        if "gguf" not in command:
            assert (Path(target) / "config.json").is_file()
        written.append(target)
    assert written == [
        *("my-4b", "small-4b", "back", "my-pirate", "my-pirate"),
        *("my-gguf", "my-megatron", "trained-4b"),
    ]
    assert len([*Path("my-gguf").glob("*.gguf")]) == 2
    once, twice = (Path(name) / "model.safetensors" for name in ("my-pirate-before", "my-pirate"))
    assert once.read_bytes() == twice.read_bytes()


def test_the_page_tells_of_every_form():
    text = PAGE.read_text(encoding="utf-8")
    section = text.partition("## Which form for what")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [*FORMATS]


def test_the_page_tells_of_every_gguf_type():
    section = PAGE.read_text(encoding="utf-8").partition("## For llama.cpp")[2]
    table = section.partition("| `--gguf-type` |")[2].partition("\n\n")[0]
    assert re.findall(r"`(\w+)`", table) == [*GGUF_TYPES]
