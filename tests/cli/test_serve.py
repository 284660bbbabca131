"""`gemma3vl serve` on the scripted backend: what it says, what it refuses, and how it ends."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

import gemma3vl_app.backends.local
import gemma3vl_app.backends.remote
import gemma3vl_app.server
from gemma3vl_app.testing.scripted import ScriptedBackend

KEY = "key-of-anna-0123456789"


@pytest.fixture
def served(monkeypatch):
    """What the server would be started with."""
    found = {}

    def serve(backend, *, on_ready, **options):
        found.update(options, backend=backend)
        on_ready("http://127.0.0.1:7999")

    monkeypatch.setattr(gemma3vl_app.backends.local, "load", lambda *_, **__: ScriptedBackend())
    monkeypatch.setattr(gemma3vl_app.server, "serve", serve)
    monkeypatch.delenv("GEMMA3VL_API_KEYS", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return found


def test_it_says_where_it_is_and_how_to_ask(served, run):
    code, out, err = run("serve")
    ready, curl = out.splitlines()
    assert (code, err, ready) == (0, "", "demo is ready: http://127.0.0.1:7999")
    words = shlex.split(curl)
    assert words[:2] == ["curl", "http://127.0.0.1:7999/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "scripted"
    assert served["page"] and served["conversations"] and not served["api"].keys


def test_limits_and_keys_reach_the_server(served, run, tmp_path, monkeypatch):
    (tmp_path / "keys").write_text(KEY)
    (tmp_path / "keys").chmod(0o600)
    monkeypatch.setenv("GEMMA3VL_API_KEYS", "key-of-ben-0123456789")
    code, out, _ = run(
        *("serve", "--no-page", "--keys-file", str(tmp_path / "keys"), "--host", "0.0.0.0"),
        *("--max-body", "1MiB", "--max-pictures", "2", "--max-answer-tokens", "9"),
        *("--max-choices", "1", "--at-once", "3", "--at-once-per-key", "2", "--per-minute", "5"),
        *("--finish-sec", "0.5"),
    )
    assert code == 0
    assert "YOUR_KEY" in out and KEY not in out
    limits = served["api"].limits
    assert (limits.body_bytes, limits.pictures, limits.answer_tokens) == (1 << 20, 2, 9)
    assert (limits.choices, limits.requests_at_once) == (1, 3)
    assert (limits.requests_at_once_per_caller, limits.requests_per_minute) == (2, 5)
    assert limits.finish_sec == 0.5
    assert len(served["api"].keys._digests) == 2
    assert not served["page"] and served["conversations"] is None


def test_no_host_s_pictures_are_fetched_but_of_those_that_are_named(served, run):
    assert run("serve")[0] == 0
    assert served["api"].remote_pictures is None
    assert run("serve", "--allowed-media-domains", "pictures.example.com,b.example.org")[0] == 0
    fetching = served["api"].remote_pictures
    assert fetching._allowed == {"pictures.example.com", "b.example.org"}


def test_it_serves_a_model_that_a_server_has(served, run, monkeypatch):
    monkeypatch.setattr(
        gemma3vl_app.backends.remote, "load_remote", lambda source, **_: ScriptedBackend()
    )
    code, out, _ = run("serve", "--no-page", "--model", "http://one:8000/v1,http://two:8000/v1")
    assert (code, out.splitlines()[0].split()[0]) == (0, "http://one:8000/v1,http://two:8000/v1")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--host", "0.0.0.0"), 1, "Set API keys with GEMMA3VL_API_KEYS or --keys-file"),
        (("--keys-file", "no-such-file"), 2, "cannot be read"),
        (("--max-body", "lots"), 2, "no size"),
        (("--allowed-media-domains", "*.example.com"), 2, "is no host name"),
        (("--no-page", "--auth", "anna:secret"), 2, "--no-page leaves out"),
        (("--key", KEY), 2, "No such option"),
    ],
)
def test_what_would_be_open_or_makes_no_sense_is_refused(served, run, arguments, code, told):
    found = run("serve", *arguments)
    assert found[0] == code
    assert told in found[2]
    assert not served


def test_doors_that_stay_closed_are_told_of(served, run, monkeypatch):
    assert "The API is closed" in run("serve", "--auth", "anna:secret")[2]
    monkeypatch.setenv("GEMMA3VL_API_KEYS", KEY)
    assert "The page is closed" in run("serve")[2]


SERVE = """
import sys, types
local = types.ModuleType("gemma3vl_app.backends.local")  # spares the import of torch
sys.modules[local.__name__] = local
from gemma3vl_app.testing import ScriptedBackend
local.load = lambda *_, **__: ScriptedBackend()
from gemma3vl_app import cli
sys.argv = ["gemma3vl", "serve", "--no-page", "--port", "17960", "--find-port"]
cli.main()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals")
def test_the_curl_line_works_and_sigterm_ends_it_with_0():
    # A real process with the real server on the scripted backend.
    with subprocess.Popen(
        [sys.executable, "-u", "-c", SERVE], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            ready, curl = process.stdout.readline(), process.stdout.readline()
            assert re.match(r"demo is ready: http://127\.0\.0\.1:\d+$", ready)
            if shutil.which("curl"):
                command = [*shlex.split(curl), "--silent", "--retry-connrefused", "--retry", "9"]
                said = subprocess.run(command, capture_output=True, text=True, timeout=60)
                assert '"content":"Hello!"' in said.stdout
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
