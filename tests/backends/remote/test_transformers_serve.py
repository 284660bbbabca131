"""A real foreign server, `transformers serve`, answers page, notebook and command line.

It is of another project, has the same model and an implementation of its own: its greedy answer to
a picture is ours only if it is asked the very same.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from PIL import Image, ImageDraw

import gemma3vl_app as gv
from gemma3vl_app.backends.local import load as load_here
from gemma3vl_app.errors import ConversationError

pytest.importorskip("openai", reason="transformers serve needs it: pip install -e '.[dev]'")
pytestmark = pytest.mark.slow

STARTS_SEC, RUN_SEC = 240, 240
ROOT = Path(__file__).parents[3]
TEMPLATE = ROOT / "tests" / "data" / "gemma3_chat_template.jinja"
TOKENS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}


def complete(checkpoint: Path, folder: Path) -> Path:
    """Copy a checkpoint and add what transformers' own processor reads and ours does not need."""
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text(encoding="utf-8"))
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "processor_class": "Gemma3Processor",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        **TOKENS,
        "extra_special_tokens": TOKENS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    about = {
        "processor_class": "Gemma3Processor",
        "image_seq_length": processor["image_seq_length"],
    }
    (folder / "processor_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    return complete(tiny, tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def address(checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = (checkpoint.parent / "log").open("wb")
    process = subprocess.Popen(
        [program, "serve", checkpoint, *options],
        stdout=log,
        stderr=log,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        until = time.monotonic() + STARTS_SEC
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, (checkpoint.parent / "log").read_text()[-2000:]
            assert time.monotonic() < until, "it did not start in time"
            time.sleep(0.2)  # another program starts: nothing tells when it is done
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def backend(address):
    with gv.load(address) as backend:
        yield backend


@pytest.fixture(scope="module")
def picture():
    image = Image.new("RGB", (96, 80), "white")
    ImageDraw.Draw(image).ellipse((10, 10, 60, 60), fill="red")
    return gv.Picture.open(image, crops="off")


def test_it_is_known_for_what_it_is(backend):
    about = backend.capabilities
    assert about.title == "tiny (transformers serve)"
    assert about.pictures
    assert not (about.logprobs or about.schema or about.score)


def test_its_greedy_answer_to_a_picture_is_that_of_our_engine(backend, checkpoint, picture):
    talk = gv.Conversation(system="Be brief.").user("Look: ", picture, " What is it?")
    options = {"sampling": gv.Greedy(), "max_new_tokens": 6}
    there = backend.stream(talk, **options).answer
    with load_here(checkpoint, weights="fp32", fast_paths=False) as engine:
        here = engine.stream(talk, **options).answer
    assert there.text == here.text
    assert there.usage.prompt_tokens == here.usage.prompt_tokens
    assert there.usage.completion_tokens == here.usage.completion_tokens


def test_a_second_turn_and_a_stop(backend, picture):
    chat = gv.Chat(backend)
    chat.ask("What is it?", images=[picture], max_new_tokens=4)
    with chat.stream("Why?", max_new_tokens=400) as stream:
        next(chunk for chunk in stream if chunk.text)
        chat.stop()
    assert stream.answer.finish_reason == "cancelled"
    assert chat.ask("And?", max_new_tokens=4).text


def test_what_it_cannot_do_is_said(backend):
    talk = gv.Conversation().user("Hi")
    for options, word in (
        ({"logprobs": 1}, "logprobs"),
        ({"schema": {}}, "schema"),
        ({"sampling": gv.Sample(top_k=5)}, "top_k"),
    ):
        with pytest.raises(ConversationError, match=word):
            backend.stream(talk, **options)


def test_the_page_talks_to_it(address, backend, picture, tmp_path):
    """The page as `gemma3vl serve` gives it, asked over HTTP as a browser does."""
    picture.rgb.save(tmp_path / "a.png")
    with page_of(address, tmp_path) as page:
        client = Client(page, verbose=False, analytics_enabled=False)
        said = client.predict("What is it?", [handle_file(tmp_path / "a.png")], api_name="/ask")
    assert said.strip()
    assert backend.capabilities.title == "tiny (transformers serve)"


@contextmanager
def page_of(address, folder):
    command = ["serve", "--model", address, "--port", "17990", "--find-port"]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "gemma3vl_app.cli", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "GEMMA3VL_DATA": str(folder / "data"), "GEMMA3VL_API_KEYS": ""},
    ) as process:
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.kill()


CELLS = (
    "import gemma3vl_app as gv",
    "backend = gv.load({address!r}); backend.capabilities.title",
    "gv.caption(backend, gv.Picture.open('a.png'), max_new_tokens=4)",
    "chat = gv.Chat(backend); chat.ask('What is it?', images=['a.png'], max_new_tokens=4)",
)


@pytest.mark.notebook
def test_a_notebook_shows_what_it_said(address, picture, tmp_path):
    """Cells run by a kernel of their own, as Jupyter runs them."""
    import nbclient  # of the extra `notebook`
    import nbformat

    picture.rgb.save(tmp_path / "a.png")
    cells = [nbformat.v4.new_code_cell(cell.format(address=address)) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, timeout=RUN_SEC, kernel_name="python3", resources=folder
    ).execute()
    title, caption, answer = (cell.outputs[-1]["data"] for cell in notebook.cells[1:])
    assert "transformers serve" in title["text/plain"]
    for shown in (caption, answer):  # the words, and how long they took
        assert "writing" in shown["text/html"]


def test_the_command_line_asks_it(address, picture, tmp_path):
    picture.rgb.save(tmp_path / "a.png")
    command = ["ask", address, "What is it?", "--image", "a.png", "--max-new-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "gemma3vl_app.cli", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=RUN_SEC,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
