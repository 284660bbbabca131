"""The repository as a Hugging Face Space: what it loads, and what it says where that fails."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from gradio_client import Client, handle_file

from gemma3vl_app import hardware
from gemma3vl_app.hardware import KNOWN_GPUS, Machine
from gemma3vl_app.loading.cache import cache_root
from gemma3vl_app.space import choose_model, explanation, fits_on_gpus

ROOT = Path(__file__).parents[1]


def machine(gpu: str, count: int = 1) -> Machine:
    return Machine(cpu_count=8, memory_bytes=64 << 30, gpus=(KNOWN_GPUS[gpu],) * count)


def chosen(machine: Machine, **environ: str) -> str:
    name, reason = choose_model(
        environ, has_gpu=bool(machine.gpus), fits=lambda name: fits_on_gpus(name, machine)
    )
    assert reason
    return name


def test_free_hardware_runs_the_demo():
    assert chosen(Machine(cpu_count=2, memory_bytes=16 << 30)) == "demo"


@pytest.mark.parametrize(
    ("gpu", "count", "model"), [("t4", 1, "4b-it"), ("l4", 1, "27b-it"), ("l4", 4, "27b-it")]
)
def test_a_gpu_takes_the_largest_model_that_fits_on_it(gpu, count, model):
    assert chosen(machine(gpu, count)) == model


def test_the_owner_may_choose():
    assert chosen(machine("l4"), GEMMA3VL_MODEL="4b-it") == "4b-it"


def test_the_page_says_what_to_do_where_a_licence_is_missing():
    page = explanation("4b-it", "<b>403</b>: accept the licence of google/gemma-3-4b-it.")
    assert "HF_TOKEN" in page
    assert "&lt;b&gt;403" in page


def test_the_front_matter_is_what_spaces_ask_for():
    _, matter, _ = (ROOT / "README.md").read_text("utf-8").split("---\n", 2)
    fields = yaml.safe_load(matter)
    assert fields["sdk"] == "gradio"
    assert fields["python_version"] == "3.12"
    assert (ROOT / fields["app_file"]).is_file()
    assert len(fields["short_description"]) <= 60
    (wanted,) = re.findall(r"^gradio>=(\S+?),<(\d+)", (ROOT / "requirements.txt").read_text(), re.M)
    found = tuple(map(int, fields["sdk_version"].split(".")))
    assert tuple(map(int, wanted[0].split("."))) <= found < (int(wanted[1]),)
    assert all(model.startswith("google/gemma-3-") for model in fields["models"])


@pytest.fixture
def checkout(tmp_path):
    """The files that Spaces would have, and no permission to write among them."""
    listed = subprocess.run(
        ["git", "ls-files", "app.py", "gemma3vl_app"], cwd=ROOT, capture_output=True, text=True
    )
    folder = tmp_path / "checkout"
    for name in listed.stdout.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


@pytest.fixture
def space(checkout, tmp_path):
    """Start `app.py` as a Space does; yield a function that starts it and gives its address."""
    processes = []

    def start(*command: str, **environ: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        environ = {
            **{k: os.environ[k] for k in ("PATH", "TMPDIR") if k in os.environ},
            "GEMMA3VL_CACHE": str(cache_root()),  # converting the base model is not the question
            **{"HOME": str(home), "SPACE_ID": "somebody/gemma", "PORT": str(port)},
            **{"PYTHONDONTWRITEBYTECODE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", **environ},
        }
        command = command or ("app.py",)
        process = subprocess.Popen([sys.executable, *command], cwd=checkout, env=environ)
        processes.append(process)
        address = f"http://127.0.0.1:{port}"
        for _ in range(900):
            assert process.poll() is None, "app.py has ended"
            try:
                httpx.get(address, timeout=5)
                return address
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError("app.py does not answer")

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.slow
def test_a_space_chats_about_a_picture(space):
    address = space()
    client = Client(address, verbose=False, analytics_enabled=False)
    picture = handle_file(ROOT / "docs" / "circle.png")
    said = client.predict("What color is the circle?", [picture], api_name="/ask")
    assert "red" in said.lower()


@pytest.mark.slow
def test_a_space_without_its_model_says_why(space):
    address = space(GEMMA3VL_MODEL="4b-it")
    page = httpx.get(address)
    assert page.status_code == 503
    assert "4b-it could not be loaded" in page.text
    assert httpx.get(f"{address}/healthz").status_code == 503


ON_LENT_GPUS = """
import os
from gemma3vl_app.space import serve_zero_gpu
from tests import forked
serve_zero_gpu(os.environ, forked.GPU, device="cpu")
"""


@pytest.mark.slow
def test_on_zero_gpu_each_answer_borrows_a_gpu_and_the_page_says_so(space):
    address = space("-c", ON_LENT_GPUS, GEMMA3VL_MODEL="demo", PYTHONPATH=f".:{ROOT}")
    assert "default-src 'self'" in httpx.get(address).headers["content-security-policy"]
    client = Client(address, verbose=False, analytics_enabled=False)
    picture = handle_file(ROOT / "docs" / "circle.png")
    said = client.predict("What color is the circle?", [picture], api_name="/ask")
    assert "red" in said.lower()


def test_what_detects_the_machine_needs_no_torch():
    assert hardware.detect_without_torch().cpu_count >= 1
