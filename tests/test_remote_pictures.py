"""Pictures are fetched from allowed public hosts and from nothing else, within time and bytes."""

from __future__ import annotations

import ast
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpcore
import pytest

from gemma3vl_app import remote_pictures
from gemma3vl_app.errors import PictureError
from gemma3vl_app.picture_decoding import PictureLimits
from gemma3vl_app.remote_pictures import RemotePictures, is_public
from tests.picture_files import encoded, photo
from tests.test_architecture import MODULES, imported_by, is_within, tree_of

PICTURE = encoded(photo())
PUBLIC, OTHER_PUBLIC, PRIVATE = "93.184.215.14", "8.8.8.8", "10.0.0.7"
Behaviour = Callable[[socket.socket], None]


def reply(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    headers = {"Content_Length": str(len(body))} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


class Host:
    """A server on this machine that notes its visitors; `paths` says what it does."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.paths: dict[str, bytes | Behaviour] = {"/a.png": reply(PICTURE)}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                visitor, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(visitor,), daemon=True).start()

    def _answer(self, visitor: socket.socket) -> None:
        request = b""
        with visitor, suppress(OSError):  # the client has had enough
            while not request.endswith(b"\r\n\r\n"):
                request += visitor.recv(1 << 16)
            self.requests.append(request.decode())
            answer = self.paths[request.split()[1].decode()]
            if callable(answer):
                answer(visitor)
            else:
                visitor.sendall(answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # else its thread waits for ever
        self._listener.close()


class Internet:
    """What names stand for, and which hosts are at which addresses; all on this machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[str, list[list[str]]] = {}  # successive answers; the last one stays
        self.hosts: dict[str, Host] = {}
        self.connected: list[str] = []
        self._connect = remote_pictures.connect
        monkeypatch.setattr(remote_pictures, "connect", self.connect)
        monkeypatch.setattr(socket, "getaddrinfo", self.look_up)

    def look_up(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host == "127.0.0.1":  # where `connect` goes
            addresses = [host]
        elif answers := self.names.get(host):
            addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        else:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    def connect(self, address: str, port: int, seconds: float) -> httpcore.NetworkStream:
        self.connected.append(address)
        return self._connect("127.0.0.1", self.hosts[address].port, seconds)


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    internet = Internet(monkeypatch)
    internet.names = {
        "images.test": [[PUBLIC]],
        "other.test": [[OTHER_PUBLIC]],
        "secret.test": [[PRIVATE]],
    }
    internet.hosts = {PUBLIC: Host(), OTHER_PUBLIC: Host(), PRIVATE: Host()}
    yield internet
    for host in internet.hosts.values():
        host.close()


@pytest.fixture
def images(internet: Internet) -> Host:
    return internet.hosts[PUBLIC]


@pytest.fixture
def secret(internet: Internet) -> Host:
    return internet.hosts[PRIVATE]


def pictures(*more: str, **options: Any) -> RemotePictures:
    return RemotePictures(["images.test", *more], **options)


# --- what is fetched ---


def test_a_picture_of_an_allowed_host_is_fetched(internet: Internet, images: Host) -> None:
    assert pictures().fetch("http://images.test/a.png") == PICTURE
    assert internet.connected == [PUBLIC]
    (request,) = images.requests
    assert request.startswith("GET /a.png HTTP/1.1\r\nHost: images.test\r\n")


def test_path_and_query_are_sent_and_a_fragment_is_not(internet: Internet, images: Host) -> None:
    images.paths["/b%20c/a.png?x=1&y=2"] = reply(PICTURE)
    assert pictures().fetch("http://images.test/b%20c/a.png?x=1&y=2#top") == PICTURE
    images.paths["/"] = reply(PICTURE)
    assert pictures().fetch("http://IMAGES.test") == PICTURE


def test_another_port_is_allowed_only_where_the_list_says_so(
    internet: Internet, images: Host
) -> None:
    with pytest.raises(PictureError, match="operator"):
        pictures().fetch("http://images.test:8080/a.png")
    assert pictures("images.test:8080").fetch("http://images.test:8080/a.png") == PICTURE
    assert "Host: images.test:8080\r\n" in images.requests[0]


def test_tls_is_asked_for_the_host_s_name_at_the_checked_address(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Stream(httpcore.MockStream):
        def start_tls(self, context: Any, server_hostname: Any = None, timeout: Any = None) -> Any:
            seen.append((server_hostname, context.check_hostname))
            return self

    def connect(address: str, port: int, seconds: float) -> Stream:
        seen.append((address, port))
        return Stream([reply(PICTURE)])

    monkeypatch.setattr(remote_pictures, "connect", connect)
    assert pictures().fetch("https://images.test/a.png") == PICTURE
    assert seen == [(PUBLIC, 443), ("images.test", True)]


def test_nothing_of_the_environment_or_of_earlier_visits_is_used(
    internet: Internet, images: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://secret.test:3128")
    images.paths["/a.png"] = reply(PICTURE, Set_Cookie="id=1; Path=/")
    fetcher = pictures()
    fetcher.fetch("http://images.test/a.png")
    fetcher.fetch("http://images.test/a.png")
    assert internet.connected == [PUBLIC, PUBLIC]
    assert not any("cookie" in request.lower() for request in images.requests)


# --- which addresses ---


@pytest.mark.parametrize(
    "url",
    [
        "http://secret.test/a.png",
        "http://127.0.0.1/a.png",
        "http://0/a.png",
        "http://0x7f.1/a.png",
        "http://2130706433/a.png",
        "http://[::1]/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://images.test.secret.test/a.png",
        "http://images.test./a.png",
        "http://xn--images-.test/a.png",
        "http://images.test:80.secret.test/a.png",
        "http://images.test@secret.test/a.png",
        "http://user:pass@images.test/a.png",
        "http://images.test\\@secret.test/a.png",
        "http://secret.test\\@images.test/a.png",
        "http://secret.test#@images.test/a.png",
        "http://secret.test?@images.test/a.png",
        "http://images.test%00.secret.test/a.png",
        "http://images.test%2fsecret.test/a.png",
        "http:///images.test/a.png",
        "http:/images.test/a.png",
        "//images.test/a.png",
        "images.test/a.png",
        "http://images\u3002test/a.png",
        "http://\uff49mages.test/a.png",
        "http://images.test/a.png\r\nHost: secret.test",
        "http://images.test /a.png",
        " http://images.test/a.png",
        "http://ima\tges.test/a.png",
        "http://images.test:0/a.png",
        "http://images.test:99999/a.png",
        "http://images.test:/a.png",
        "ftp://images.test/a.png",
        "file:///etc/passwd",
        "gopher://images.test/_x",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "http://images.test/" + "a" * 3000,
        "",
    ],
)
def test_an_address_that_is_not_allowed_or_reads_two_ways_is_not_asked(
    internet: Internet, url: str
) -> None:
    with pytest.raises(PictureError, match="fetched from"):
        pictures().fetch(url)
    assert internet.connected == []


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "100.100.100.200", "192.0.0.1", "198.18.0.1", "192.0.2.1"),
        *("224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::1", "::", "::ffff:127.0.0.1", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
        *("64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00:1::", "fd00:ec2::254"),
        *("fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1"),
        *("100::1", "5f00::1", "localhost", ""),
    ],
)
def test_an_allowed_name_of_a_private_address_is_not_connected_to(
    internet: Internet, address: str
) -> None:
    for answers in ([address], [PUBLIC, address]):  # one bad answer among good ones, too
        internet.names["images.test"] = [answers]
        with pytest.raises(PictureError, match="could not be fetched"):
            pictures().fetch("http://images.test/a.png")
    assert internet.connected == []


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_a_public_address_is_one(address: str) -> None:
    assert is_public(address)


def test_a_private_address_on_the_list_stays_private(internet: Internet) -> None:
    internet.names["127.1"] = [["127.0.0.1"]]
    with pytest.raises(PictureError, match="could not be fetched"):
        RemotePictures(["127.1"]).fetch("http://127.1/a.png")
    assert internet.connected == []


def test_a_name_is_looked_up_once_and_the_checked_address_is_used(
    internet: Internet, secret: Host
) -> None:
    internet.names["images.test"] = [[PUBLIC], [PRIVATE]]  # another answer the second time
    assert pictures().fetch("http://images.test/a.png") == PICTURE
    assert internet.connected == [PUBLIC]
    with pytest.raises(PictureError, match="could not be fetched"):
        pictures().fetch("http://images.test/a.png")
    assert secret.requests == []


def test_a_name_nobody_knows_and_a_private_one_sound_alike(internet: Internet) -> None:
    words = set()
    for answers in ([], [[PRIVATE]], [[]]):
        internet.names["images.test"] = answers
        with pytest.raises(PictureError) as caught:
            pictures().fetch("http://images.test/a.png")
        words.add(str(caught.value))
    assert len(words) == 1


@pytest.mark.parametrize(
    "domain", ["", "*", "http://images.test", "images.test/", "a b", "images.test.", "\uff49"]
)
def test_a_list_that_cannot_be_meant_is_refused(domain: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        RemotePictures([domain])


# --- redirects ---


def redirect(location: str, status: str = "302 Found") -> bytes:
    return reply(b"", status, Location=location)


@pytest.mark.parametrize("status", ["301 a", "302 a", "303 a", "307 a", "308 a"])
def test_a_redirect_within_the_list_is_followed(
    internet: Internet, images: Host, status: str
) -> None:
    images.paths["/r"] = redirect("http://other.test/a.png", status)
    assert pictures("other.test").fetch("http://images.test/r") == PICTURE
    assert internet.connected == [PUBLIC, OTHER_PUBLIC]
    images.paths["/r"] = redirect("a.png", status)
    assert pictures().fetch("http://images.test/r") == PICTURE


@pytest.mark.parametrize(
    "location",
    [
        "http://secret.test/a.png",
        "//secret.test/a.png",
        "http://127.0.0.1/a.png",
        "http://user@secret.test/a.png",
        "file:///etc/passwd",
        "http://images.test:8080/a.png",
        "http://other.test/a.png",
        "http://[bad/a.png",
        "\\\\secret.test/a.png",
    ],
)
def test_a_redirect_elsewhere_is_not_followed(
    internet: Internet, images: Host, secret: Host, location: str
) -> None:
    images.paths["/r"] = redirect(location)
    with pytest.raises(PictureError):
        pictures().fetch("http://images.test/r")
    assert secret.requests == [] and internet.connected == [PUBLIC]


def test_an_allowed_host_behind_a_redirect_must_be_public_too(
    internet: Internet, images: Host, secret: Host
) -> None:
    images.paths["/r"] = redirect("http://secret.test/a.png")
    with pytest.raises(PictureError, match="could not be fetched"):
        pictures("secret.test").fetch("http://images.test/r")
    assert secret.requests == []


def test_redirects_are_counted(internet: Internet, images: Host) -> None:
    images.paths |= {f"/{n}": redirect(f"/{n + 1}") for n in range(9)}
    images.paths["/3"] = reply(PICTURE)
    assert pictures().fetch("http://images.test/0") == PICTURE
    images.paths["/3"] = redirect("/a.png")
    with pytest.raises(PictureError, match="more than 3 redirects"):
        pictures().fetch("http://images.test/0")
    with pytest.raises(PictureError, match="more than 0 redirects"):
        pictures(max_redirects=0).fetch("http://images.test/3")


def test_a_redirect_does_not_leave_tls(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [redirect("http://images.test/a.png"), reply(PICTURE)]
    streams = [httpcore.MockStream([answer]) for answer in answers]
    monkeypatch.setattr(remote_pictures, "connect", lambda *_: streams.pop(0))
    with pytest.raises(PictureError, match="unprotected"):
        pictures().fetch("https://images.test/r")
    assert len(streams) == 1


# --- bytes and time ---


def test_a_body_without_end_is_cut_at_the_limit(internet: Internet, images: Host) -> None:
    sent: list[int] = []

    def endless(visitor: socket.socket) -> None:
        visitor.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            visitor.sendall(PICTURE)
            sent.append(len(PICTURE))

    images.paths["/a.png"] = endless
    with pytest.raises(PictureError, match=r"'a\.png' has .*; the limit is 100,000 bytes"):
        pictures(limits=PictureLimits(max_bytes=100_000)).fetch("http://images.test/a.png")
    assert sum(sent) < 20_000_000  # what lay in the buffers between


def test_a_length_beyond_the_limit_is_refused_unread(internet: Internet, images: Host) -> None:
    images.paths["/a.png"] = reply(b"", Content_Length="999999999")
    with pytest.raises(PictureError, match=r"953\.7 MiB; the limit is 25\.0 MiB"):
        pictures().fetch("http://images.test/a.png")


@pytest.mark.parametrize("length", [len(PICTURE) + 9, "many", "-1"])
def test_a_wrong_length_is_an_error(internet: Internet, images: Host, length: object) -> None:
    images.paths["/a.png"] = reply(PICTURE, Content_Length=str(length))
    with pytest.raises(PictureError, match="could not be fetched"):
        pictures().fetch("http://images.test/a.png")


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip"])
def test_a_compressed_body_is_not_unpacked(internet: Internet, images: Host, coding: str) -> None:
    images.paths["/a.png"] = reply(gzip.compress(PICTURE), Content_Encoding=coding)
    with pytest.raises(PictureError, match="compressed"):
        pictures().fetch("http://images.test/a.png")
    assert "Accept-Encoding: identity" in images.requests[0]


DRIPS_SEC = 10.0  # much longer than a fetch may take, and an end all the same


def drip(visitor: socket.socket, first: bytes, ended: threading.Event) -> None:
    """Send byte after byte; `ended` says that the visitor has stayed until the end."""
    visitor.sendall(first)
    until = time.monotonic() + DRIPS_SEC
    while time.monotonic() < until:
        visitor.sendall(b"a")
        time.sleep(0.02)
    ended.set()


@pytest.mark.parametrize(
    "first",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"],
    ids=["status", "headers", "body"],
)
def test_a_host_that_drips_is_left_after_the_total_time(
    internet: Internet, images: Host, first: bytes
) -> None:
    ended = threading.Event()
    images.paths["/a.png"] = lambda visitor: drip(visitor, first, ended)
    with pytest.raises(PictureError, match="could not be fetched"):
        pictures(total_sec=0.3).fetch("http://images.test/a.png")
    assert not ended.is_set()


def test_redirects_share_the_total_time(internet: Internet, images: Host) -> None:
    def slow(visitor: socket.socket) -> None:
        threading.Event().wait(0.2)
        visitor.sendall(redirect("/a.png"))

    images.paths["/a.png"] = slow
    with pytest.raises(PictureError, match="could not be fetched"):
        pictures(total_sec=0.5).fetch("http://images.test/a.png")


def test_a_name_that_is_not_looked_up_in_time_is_left(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer.wait() and [])
    with pytest.raises(PictureError, match="could not be fetched"):
        pictures(connect_sec=0.1).fetch("http://images.test/a.png")
    answer.set()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(b"hello", Content_Type="image/png"), "not a picture"),
        (reply(b"<!doctype html>", Content_Type="image/png"), "a web page"),
        (reply(b"<svg xmlns=''/>", Content_Type="image/png"), "an SVG drawing"),
        (reply(b""), "empty"),
        (reply(PICTURE, "404 Not Found"), "status 404"),
        (reply(PICTURE, "206 Partial Content"), "status 206"),
        (b"nonsense\r\n\r\n", "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000, "could not be fetched"),
    ],
)
def test_what_comes_is_looked_at_whatever_it_is_called(
    internet: Internet, images: Host, answer: bytes, words: str
) -> None:
    images.paths["/a.png"] = answer
    with pytest.raises(PictureError, match=words):
        pictures().fetch("http://images.test/a.png")


# --- the only one ---


CLIENTS = {"httpx", "httpx2", "httpcore", "requests", "urllib3", "aiohttp", "safehttpx"}
CLIENTS |= {"urllib.request", "http.client"}
MAY_FETCH = {  # from hosts that only the person at this machine names
    *("loading.hub", "loading.hub_download", "loading.hub_errors", "cli.checks.hub"),
    *("benchmark.page", "backends.remote", "remote_pictures"),
}


@pytest.mark.parametrize("name", [n for n in MODULES if not is_within(n, MAY_FETCH)])
def test_no_other_module_fetches(name: str) -> None:
    wrong = [each for each in imported_by(tree_of(name)) if is_within(each, CLIENTS)]
    assert not wrong, f"{name} imports {wrong}: pictures are fetched by remote_pictures alone"


def test_the_lint_sees_every_way_of_importing() -> None:
    lines = ("import httpx", "from urllib import request", "import urllib.request as u")
    found = imported_by(ast.parse("\n".join((*lines, "from http.client import *"))))
    assert len(found) == 4 and all(is_within(each, CLIENTS) for each in found)
