"""A server of a tiny model, with a real engine, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[2]
LONGEST_SEC = 60  # what a test waits for one reply, on a busy machine
SERVER = """
import json, sys
from gemma3vl_app import server
from gemma3vl_app.api.keys import Keys
from gemma3vl_app.api.limits import ApiLimits
from gemma3vl_app.backends.local import load
from gemma3vl_app.engine.engine import EngineLimits

folder, said = sys.argv[1], json.loads(sys.argv[2])
limits = ApiLimits(requests_per_minute=1_000_000, **said["limits"])
engine = EngineLimits(max_running=said["running"], prefix_budget_bytes=8 << 20)
with load(folder, weights="fp32", speculation="off", limits=engine) as backend:
    server.serve(
        backend, port=29_000, find_port=True, page=False,
        api=server.ApiOptions(keys=Keys(said["keys"]), limits=limits),
        on_ready=lambda address: print(address, flush=True),
    )
"""


@dataclass(frozen=True)
class ModelProcess:
    """A server that runs; its model is called "tiny"."""

    process: subprocess.Popen[str]
    address: str

    def resident_bytes(self) -> int:
        """Memory of the server and of all processes below it, those that decode pictures."""
        server = psutil.Process(self.process.pid)
        found = 0
        for each in [server, *server.children(recursive=True)]:
            try:
                found += each.memory_info().rss
            except psutil.NoSuchProcess:  # it was replaced just now
                continue
        return found


@contextmanager
def model_process(
    checkpoint: Path, keys: Sequence[str], *, running: int = 4, **limits: int
) -> Iterator[ModelProcess]:
    """Start a server for those who have `keys`; `limits` are those of the API."""
    said = json.dumps({"keys": list(keys), "running": running, "limits": limits})
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(checkpoint), said],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the server did not start"
        yield ModelProcess(process, address)
    finally:
        process.kill()
        process.wait()


def client_of(address: str, key: str) -> httpx.Client:
    """A client of somebody who has this key."""
    headers = {"authorization": f"Bearer {key}"}
    # No certificates are looked through, which would take longer than most replies.
    return httpx.Client(base_url=address, timeout=LONGEST_SEC, headers=headers, verify=False)
