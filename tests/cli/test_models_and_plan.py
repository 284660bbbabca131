"""`gemma3vl models` and `gemma3vl plan` as people run and read them."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest

from gemma3vl_app import catalog
from gemma3vl_app.cli.models import short_map

TWO_GPUS = ("27b-it", "--max-memory", "cuda:0=12GiB,cuda:1=12GiB,cpu=64GiB")
LIMIT_SEC = 3
WITHOUT_TORCH = """
import sys
from gemma3vl_app import cli
sys.argv = ["gemma3vl", *sys.argv[1:]]
try:
    cli.main()
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""


@pytest.fixture(params=[80, 120])
def columns(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


@pytest.mark.parametrize("arguments", [("models",), ("plan", *TWO_GPUS), ("plan", "4b-it")])
def test_it_is_quick_and_needs_no_torch(arguments):
    seconds = []
    for _ in range(2):  # the first run may have to compile modules
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < LIMIT_SEC
    assert done.stdout
    assert not {"torch", "transformers", "gradio", "numpy"} & set(done.stderr.split())


def test_models_shows_every_name_and_no_line_is_too_long(run, columns):
    code, out, err = run("models")
    assert (code, err) == (0, "")
    for name in catalog.MODELS:
        assert re.search(rf"^{name} ", out, re.M)
    assert max(map(len, out.splitlines())) <= columns
    assert catalog.LICENCE_LINK in out
    assert "https://huggingface.co/google/gemma-3-4b-it" in out


def test_no_heading_of_the_models_is_cut_in_a_narrow_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    headings = run("models")[1].splitlines()[0].split()
    assert headings == ["model", "size", "context", "pictures", "licence", "here"]


def test_models_as_json_has_cards_and_what_fits(run):
    rows = {row["name"]: row for row in json.loads(run("models", "--json")[1])}
    assert set(rows) == set(catalog.MODELS)
    row = rows["27b-it-qat-q4_0"]
    assert row["card"] == "https://huggingface.co/google/gemma-3-27b-it-qat-q4_0-unquantized"
    assert row["parameters"] == 27_432_406_640
    assert rows["demo"]["fits"] and sum(rows["demo"]["bytes_by_device"].values()) > 1e8
    assert rows["4b-it"]["pictures"] and not rows["1b-it"]["pictures"]


def test_a_plan_shows_devices_places_and_reasons(run, columns):
    code, out, _ = run("plan", *TWO_GPUS)
    assert code == 0
    assert max(map(len, out.splitlines())) <= columns
    for device in ("cuda:0", "cuda:1", "cpu"):
        assert re.search(rf"^{device} .* (12|64)\.00$", out, re.M)
    assert re.search(r"^  cuda:0  embed_tokens, .*layers\s+0-\d+$", out, re.M | re.S)
    assert re.search(r"^  cuda:1  layers \d+-61$", out, re.M)
    assert "\nWhy\n  - bfloat16: cuda:0" in out
    assert "What would fit" not in out


def test_the_table_adds_up(run):
    out = run("plan", "27b-it", "--max-memory", "cuda:0=80GiB")[1]
    (row,) = re.findall(r"^cuda:0 +(.*)$", out, re.M)
    *parts, total, limit = [float(number) for number in row.replace("<", "").split()]
    assert sum(parts) == pytest.approx(total, abs=0.04)
    assert (len(parts), limit) == (6, 80.0)


def test_what_does_not_fit_says_what_would_and_is_exit_code_1(run):
    code, out, err = run("plan", "27b-it", "--max-memory", "cuda:0=16GiB")
    assert (code, err) == (1, "")
    assert "27b-it does not fit" in out
    assert "\nWhat would fit\n  - " in out


def test_a_disk_without_limit_shows_none(run):
    arguments = ("plan", "27b-it", "--max-memory", "cpu=20GiB,disk=1099511627776TiB")
    code, out, _ = run(*arguments)
    assert code == 0
    assert re.search(r"^disk +[\d.]+( +-)+ +[\d.]+ *$", out, re.M)
    assert json.loads(run(*arguments, "--json")[1])["limits_by_device"]["disk"] is None


def test_the_json_is_one_line_with_everything(run):
    code, out, _ = run("plan", *TWO_GPUS, "--json", "--train")
    assert code == 0
    assert len(out.splitlines()) == 1
    plan = json.loads(out)
    assert plan["model"] == "27b-it"
    assert plan["training"]["nodes"] == 2
    for device, held in plan["bytes_by_device"].items():
        assert held["total"] <= plan["limits_by_device"][device]
        assert held["total"] == sum(size for name, size in held.items() if name != "total")


def test_wishes_change_the_plan(run):
    def total(*arguments):
        out = run("plan", "4b-it", "--max-memory", "cuda:0=80GiB", "--json", *arguments)[1]
        plan = json.loads(out)
        return plan["weights"], plan["bytes_by_device"]["cuda:0"]["total"]

    weights, least = total()
    assert weights == "bf16"
    assert total("--weights", "nf4")[0] == "nf4"
    for wish in ("--context-tokens=65536", "--images=9", "--sequences=4"):
        assert total(wish)[1] > least


def test_known_gpus_can_be_planned_for(run):
    out = run("plan", "27b-it", "--gpu", "2xrtx-4090", "--json")[1]
    assert list(json.loads(out)["limits_by_device"]) == ["cuda:0", "cuda:1"]
    code, out, _ = run("plan", "4b-it", "--gpu", "t4", "--json")
    assert (code, json.loads(out)["dtype"]) == (0, "float32")


@pytest.mark.parametrize(
    ("model", "hardware"),
    [("4b-it", "1 node with 8 GPUs."), ("27b-it", "2 nodes with 8 GPUs each, 16 in all.")],
)
def test_fine_tuning_shows_megatron_bridges_recommendation(run, model, hardware):
    out = run("plan", model, "--train", "--max-memory", "cuda:0=80GiB")[1]
    assert hardware in out
    assert "https://docs.nvidia.com/nemo/megatron-bridge/" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("demo", "--train"), "only for 4B, 12B and 27B"),
        (("1b-it", "--train"), "only for 4B, 12B and 27B"),
        (("27b-itt",), "Did you mean '27b-it'"),
        (("4b-it", "--context-tokens", "200000"), "131,072"),
        (("owner/unknown",), "never downloaded here"),
        (("owner/not--a-name",), "never downloaded here"),
        (("~nobody-here/x",), "no model or folder"),
        (("x" * 5000,), "no model or folder"),
    ],
)
def test_bad_wishes_are_one_plain_line(run, arguments, told):
    code, out, err = run("plan", *arguments)
    assert (code, out) == (1, "")
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert "inside" not in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("4b-it", "--gpu", "gtx-1"), "Known are t4"),
        (("4b-it", "--weights", "fp16"), "overflow float16"),
        (("4b-it", "--device-map", "gpu"), "'gpu' is no device"),
        (("4b-it", "--max-memory", "cuda:0=lots"), "'lots' is no size"),
    ],
)
def test_what_no_machine_can_do_is_a_wrong_command_line(run, arguments, told):
    code, out, err = run("plan", *arguments)
    assert (code, out) == (2, "")
    assert told in err and len(err.splitlines()) == 1


def test_a_plan_speaks_of_options(run):
    out = run("plan", "27b-it", "--max-memory", "cuda:0=48GiB", "--weights", "fp32")[1]
    assert "you asked for --weights fp32" in " ".join(out.split())
    assert re.search(r"- --weights (int8|nf4)$", out, re.M) and "weights=" not in out


def test_layers_are_shown_as_ranges():
    text = {f"model.language_model.layers.{n}": "cuda:0" for n in (0, 1, 2, 5)}
    shown = short_map({**text, "model.language_model.layers.3": "cpu", "lm_head": "cpu"})
    assert shown == {"cuda:0": ["layers 0-2, 5"], "cpu": ["lm_head", "layers 3"]}
    assert short_map({"": "cpu"}) == {"cpu": ["everything"]}
    assert short_map({"": "cpu", "model.norm": "mps"})["cpu"] == ["everything else"]


def test_the_cache_can_be_listed_and_cleaned(run, monkeypatch, tmp_path):
    monkeypatch.setenv("GEMMA3VL_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert run("cache", "list")[0] == 0
    code, _, err = run("cache", "clean")
    assert code == 2 and "--all" in err
    assert run("cache", "clean", "--all") == (0, "Deleted 0, 0.00 GiB.\n", "")


def test_the_installed_program_runs():
    program = shutil.which("gemma3vl", path=str(sys.prefix) + "/bin")
    done = subprocess.run([program, "plan", "demo"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
