"""docs/faithfulness.md: its commands run, and its tables say what the code has."""

import re
import shlex
from pathlib import Path

import pytest

from gemma3vl_app import cli
from gemma3vl_app.faithfulness import paths, reader
from gemma3vl_app.faithfulness.bounds import FORM_BOUNDS, own_pass_bounds
from gemma3vl_app.faithfulness.engine_paths import AT_ONCE, NO_KERNELS, PATHS
from tests.faithfulness import pages

PAGE = Path(__file__).parents[2] / "docs" / "faithfulness.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [
    words
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.M | re.S)
    for line in block.splitlines()
    if (words := shlex.split(line, comments=True))[:2] == ["gemma3vl", "verify"]
]
MODELS = {"4b-it", "runs/my-4b", "my-4b.gguf", "demo"}


@pytest.mark.parametrize("command", COMMANDS, ids=map(shlex.join, COMMANDS))
def test_the_commands_run(command, tiny, questions, shown, tmp_path, monkeypatch, capsys):
    """On the tiny checkpoint: with one question, in one form, on some paths."""
    some = (AT_ONCE, NO_KERNELS)
    monkeypatch.setattr(paths, "PATHS", {name: PATHS[name] for name in some})
    told = {**dict.fromkeys(MODELS, str(tiny)), "photos": str(shown)}
    words = [told.get(word, word) for word in command]
    if "--pictures" not in words:
        words += ["--prompts", str(questions)]
    if "--against" in words and "--weights" not in words:
        words += ["--weights", "w16"]
    monkeypatch.setattr(reader, "ANSWER_TOKENS", 2)
    monkeypatch.setattr(reader, "MOST_POSITIONS", 20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    assert "Every bound holds" in out
    if "--json" in words:
        assert (tmp_path / "figures.json").stat().st_size > 1000


def rows(heading: str) -> list[list[str]]:
    """The rows of the table below a line of the page that begins with `heading`."""
    table = TEXT.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert lines
    return lines


def test_the_page_says_which_paths_there_are():
    named = [name for cells in rows("path") for name in cells[0].split(", ") if name in PATHS]
    assert "\n| engine, prompt at once |" in TEXT
    assert {*named, "engine, prompt at once"} == {*PATHS}


@pytest.mark.parametrize("model", pages.MODELS)
def test_the_measured_tables_are_those_of_the_files(model):
    message = "run `python -m tests.faithfulness.pages` to write them anew"
    assert pages.shown(TEXT, model) == pages.tables(model), message


@pytest.mark.parametrize("model", pages.MODELS)
def test_every_form_was_measured_on_every_path(model):
    found = [each for each in pages.results(model) if pages.OFF not in each["note"]]
    forms = {each["weights"] for each in found}
    assert forms == {*paths.FORMS}
    for form in forms:
        gone = {(each["path"], each["crops"]) for each in found if each["weights"] == form}
        kernels = {NO_KERNELS} if form not in paths.COMPILED_FORMS else set()
        assert gone == {(path, each) for path in PATHS.keys() - kernels for each in ("off", "on")}


def test_the_page_says_the_bounds():
    shown = {form: cells[1] for cells in rows("form") for form in cells[0].split(", ")}
    assert shown.keys() == FORM_BOUNDS.keys()
    for form, bounds in FORM_BOUNDS.items():
        if bounds.max_mean_kl is not None:
            assert shown[form] == f"mean KL {bounds.max_mean_kl:g}"
        else:
            assert shown[form] == f"difference {bounds.max_difference:g}, top-1 100 %"


def test_the_page_says_the_bounds_next_to_the_own_pass():
    float32, bfloat16, mixed, rows_differ = (cells[1] for cells in rows("arithmetic"))
    without = own_pass_bounds("int4", "bfloat16", kernels=False)
    assert f"mean KL {without.max_mean_kl:g}" == rows_differ
    for form in FORM_BOUNDS:
        slow = own_pass_bounds(form, "bfloat16", kernels=True)
        assert f"mean KL {slow.max_mean_kl:g}" == (bfloat16 if form == "bf16" else mixed)
    for form in ("fp32", "w16", "nf4", "int8"):
        bound = own_pass_bounds(form, "float32", kernels=True)
        assert f"difference {bound.max_difference:g}" == float32
    for form, kernels in (("int4", True), ("int8", False), ("nf4", False)):
        assert f"mean KL {own_pass_bounds(form, 'float32', kernels=kernels).max_mean_kl:g}" == mixed
