"""A small Hugging Face hub on this machine, with faults to switch on.

Speaks what downloading needs, over real sockets: a repository's files with sizes and hashes, and
the files themselves with ranges, from a second address as the real hub's storage is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
LARGE_BYTES = 1000  # files from here on are kept as LFS objects


@dataclass
class Faults:
    """What the hub does wrong; every number counts down or stays, as its comment says."""

    errors: dict[str, list[tuple[int, dict[str, str], bytes]]] = field(default_factory=dict)
    # ^ by "list" or a file's name: answers given instead, one after the other
    always: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)  # one a download: bytes sent before the end
    stall_after: list[int] = field(default_factory=list)  # as above, but the connection stays open
    served: dict[str, bytes] = field(default_factory=dict)  # other bytes than those announced
    no_ranges: bool = False
    wrong_range: bool = False
    listing: dict[str, object] = field(default_factory=dict)  # replaces fields of the listing
    wrong_etag: bool = False
    hold: dict[str, threading.Event] = field(default_factory=dict)  # files that wait for it


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    host: str  # "hub" or "storage"


class FakeHub:
    """Serves `repos`: {"google/x": {"config.json": b"..."}}; use as a context manager."""

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        self.repos, self.faults = repos, Faults()
        self.commits: dict[str, str] = {}  # COMMIT where none is set
        self.datasets: set[str] = set()
        self.gated: set[str] = set()
        self.tokens: dict[str, bool] = {}  # known tokens: whether the licence is accepted
        self.requests: list[Request] = []
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self._servers = [self._server("hub"), self._server("storage")]
        self.endpoint, self.storage = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )

    def _server(self, host: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "host": host})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        return server

    def __enter__(self) -> FakeHub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def downloads(self, name: str) -> list[Request]:
        """The requests that reached the storage for one file."""
        return [r for r in self.requests if r.host == "storage" and r.path.endswith("/" + name)]


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    host: str
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append(Request("GET", path, dict(self.headers), self.host))
        if api := re.fullmatch(r"/api/(models|datasets|spaces)/(.+?)(?:/revision/(.+))?", path):
            self._list(*api.groups())
        elif file := re.fullmatch(r"/(.+)/resolve/([^/]+)/([^/]+)", path):
            self._resolve(*file.groups())
        else:
            self._answer(404, {}, b"")

    def _list(self, kind: str, repo: str, revision: str | None) -> None:
        faults = self.hub.faults
        if self._fails("list"):
            return
        if kind == "datasets" and repo in self.hub.datasets:
            return self._json({"id": repo, "sha": COMMIT})
        if (token := self._token()) and token not in self.hub.tokens:
            said = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return self._answer(401, said, b"{}")
        if kind != "models" or repo not in self.hub.repos:
            return self._answer(404 if token else 401, {"X-Error-Code": "RepoNotFound"}, b"{}")
        commit = self.hub.commits.get(repo, COMMIT)
        if revision not in (None, "main", "refs/pr/1", commit):
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
        siblings = []
        for name, content in self.hub.repos[repo].items():
            entry = {"rfilename": name, "size": len(content), "blobId": blob_id(content)}
            if len(content) >= LARGE_BYTES:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
            siblings.append(entry)
        self._json({"id": repo, "sha": commit, "siblings": siblings} | faults.listing)

    def _resolve(self, repo: str, commit: str, name: str) -> None:
        hub = self.hub
        if self._fails(name):
            return
        if self.host == "hub":
            if repo in hub.gated and not hub.tokens.get(self._token() or ""):
                status = 403 if self._token() else 401
                return self._answer(status, {"X-Error-Code": "GatedRepo"}, b"{}")
            if commit != hub.commits.get(repo, COMMIT) or name not in hub.repos[repo]:
                return self._answer(404, {"X-Error-Code": "EntryNotFound"}, b"{}")
            location = f"{hub.storage}{self.path}?signature=secret"
            return self._answer(302, {"Location": location, "X-Repo-Commit": commit}, b"")
        if hold := hub.faults.hold.get(name):
            hold.wait(10)
        self._send_file(hub.faults.served.get(name, hub.repos[repo][name]))

    def _send_file(self, content: bytes) -> None:
        faults, start = self.hub.faults, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not faults.no_ranges:
            start = int(asked[1])
            if start >= len(content):
                return self._answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            shown = start + faults.wrong_range
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", '"wrong"' if faults.wrong_etag else f'"{blob_id(content)}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with self.hub.lock:
            cut = faults.cut_after.pop(0) if faults.cut_after else None
            stall = faults.stall_after.pop(0) if faults.stall_after else None
        self.wfile.write(body[: cut if cut is not None else stall])
        self.wfile.flush()
        if stall is not None:
            self.hub.released.wait(30)
        if cut is not None or stall is not None:
            self.close_connection = True

    def _fails(self, what: str) -> bool:
        faults = self.hub.faults
        with self.hub.lock:
            queue = faults.errors.get(what)
            answer = queue.pop(0) if queue else faults.always.get(what)
        if answer:
            self._answer(*answer)
        return answer is not None

    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _json(self, value: object) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
