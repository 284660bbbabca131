"""docs/api.md: its examples run, and its tables name everything there is."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gemma3vl_app.api.requests import ChatCompletionRequest
from gemma3vl_app.api.response_requests import ResponseRequest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:7860"
RUN_SEC = 300  # the first use of the demo on a machine converts it
BETWEEN = "--- the next one"


def blocks(language, page=PAGE):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The command itself, as people start it: the demo, the page beside the API."""
    folder = tmp_path_factory.mktemp("served")
    names = ("GEMMA3VL_API_KEYS", "GEMMA3VL_AUTH", "GRADIO_TEMP_DIR")
    environment = {name: text for name, text in os.environ.items() if name not in names}
    command = ["serve", "--port", "17860", "--find-port", "--conversations", str(folder)]
    with subprocess.Popen(
        [sys.executable, "-m", "gemma3vl_app.cli", *command],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            said = process.stdout.readline()
            assert said.startswith("demo is ready: "), said
            yield said.split()[-1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(RUN_SEC) == 0
        finally:
            process.kill()


def run(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SEC)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_programs_people_are_shown_run(address):
    # In one process, one after the other: importing OpenAI's client takes longer than the answers.
    programs = [
        program.replace(ADDRESS, address) for program in blocks("py") + blocks("py", README)
    ]
    said = run(sys.executable, "-c", f"\nprint({BETWEEN!r})\n".join(programs)).split(BETWEEN)
    assert len(said) == len(programs) == 4 and all(each.strip() for each in said)
    turns, shape = said[0], said[1]
    assert re.search(r"[1-9]\d* tokens were known", turns)
    assert json.loads(shape)["color"] in ("red", "green", "blue")


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_curl_line_of_the_front_page_works(address):
    (lines,) = blocks("shell", README)
    said = run("bash", "-euo", "pipefail", "-c", lines.replace(ADDRESS, address))
    assert json.loads(said)["choices"][0]["message"]["content"].strip()


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_curl_lines_people_are_shown_work(address):
    (lines,) = blocks("shell")
    said = run("bash", "-euo", "pipefail", "-c", lines.replace(ADDRESS, address))
    assert len(re.findall(r'"content":"\S', said)) == 2
    assert re.search(r'"image_tokens":[1-9]', said)
    assert '"id":"demo"' in said
    assert '{"status":"ready"}' in said
    assert "gemma3vl_tokens_total" in said
    assert '"error"' not in said


def test_every_field_is_in_the_tables():
    for request in (ChatCompletionRequest, ResponseRequest):
        named = [*request.model_fields]
        if request is ChatCompletionRequest:
            named += [*request.neutral, *request.left_aside]
        missing = [name for name in named if not re.search(rf"`{name}[`.]", PAGE)]
        assert not missing


def test_every_metric_and_code_and_option_is_in_the_tables():
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "gemma3vl_app" / "api").glob("*.py")
    )
    for code in set(re.findall(r'code="(\w+)"', sources)) - {"method_not_allowed", "not_found"}:
        if code in ("foreign", "request_timeout", "request_too_large") or "unsupported_" in code:
            continue  # said by their status
        assert f"`{code}`" in PAGE, code
    for metric in re.findall(r'"(gemma3vl_(?!app)\w+)"', sources):
        assert f"`{metric}" in PAGE, metric
    command = (ROOT / "gemma3vl_app" / "cli" / "serve.py").read_text(encoding="utf-8")
    options = r"^    (max_(?!memory)\w+|at_once\w*|per_minute|finish_sec): [A-Z]"
    for option in re.findall(options, command, re.M):
        assert f"`--{option.replace('_', '-')}`" in PAGE, option
