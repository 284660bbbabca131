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
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageDraw

import gemma3vl_app as gv
from gemma3vl_app.backends.local import load as load_here
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.webui.library import Library
from gemma3vl_app.webui.shown_pictures import ShownPictures
from gemma3vl_app.webui.tab import Tab
from gemma3vl_app.webui.view import Draft

pytest.importorskip("openai", reason="transformers serve needs it: pip install -e '.[dev]'")
pytestmark = pytest.mark.slow

STARTS_SEC, RUN_SEC = 240, 240
TEMPLATE = Path(__file__).parents[2] / "data" / "gemma3_chat_template.jinja"
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


def test_the_page_talks_to_it(backend, picture, tmp_path):
    picture.rgb.save(tmp_path / "a.png")
    pictures = ShownPictures(tmp_path / "shown")
    tab = Tab(Library(lambda: backend), pictures, lambda: backend, "anna")
    view = list(tab.ask(Draft("What is it?", (str(tmp_path / "a.png"),))))[-1]
    assert not view.is_error, view.line
    assert view.messages[-1].text


def test_a_notebook_shows_what_it_said(backend, picture):
    from gemma3vl_app.notebook.displays import shown

    caption = gv.caption(backend, picture, max_new_tokens=4)
    assert caption.text and shown(caption).html


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
