"""docs/api.md: its examples run, and its tables name everything there is."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemma3vl_app.api.requests import ChatCompletionRequest
from gemma3vl_app.api.response_requests import ResponseRequest
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES, ScriptedBackend
from tests.api.servers import served

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:7860"
RUN_SEC = 120


def blocks(language, page=PAGE):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


class KeepsToSchemas(ScriptedBackend):
    """Echoes, but for the page's one schema."""

    def _pieces(self, request):
        return ['{"color": "red"}'] if request.schema else super()._pieces(request)


@pytest.fixture(scope="module")
def address():
    named_demo = dataclasses.replace(DEFAULT_CAPABILITIES, model="demo")
    with served(KeepsToSchemas(capabilities=named_demo)) as server:
        yield server.address


def run(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SEC)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("program", blocks("py") + blocks("py", README))
def test_the_programs_people_are_shown_run(program, address):
    assert run(sys.executable, "-c", program.replace(ADDRESS, address)).strip()


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_curl_line_of_the_front_page_works(address):
    (lines,) = blocks("shell", README)
    said = run("bash", "-euo", "pipefail", "-c", lines.replace(ADDRESS, address))
    assert '"content":"Hello!"' in said


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_curl_lines_people_are_shown_work(address):
    (lines,) = blocks("shell")
    said = run("bash", "-euo", "pipefail", "-c", lines.replace(ADDRESS, address))
    assert '"content":"Hello!"' in said
    assert '"content":"What is this?"' in said
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
