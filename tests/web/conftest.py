"""A real page in a real browser: the app served on a free port, and chromium without a window."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.server import create_app

CHROMIUM = "/usr/bin/chromium"


@contextmanager
def served(backend: Backend) -> Iterator[str]:
    """Serve the page for `backend`; yield its address."""
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(backend), port=0, log_level="warning", timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


class ChatPage:
    """The chat page as a person uses it."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.foreign: list[str] = []  # addresses outside the server that the page asked for
        self.dialogs: list[str] = []  # alerts: some script of a message ran
        here = urlsplit(address).netloc
        page.on("request", lambda r: self._note(r.url, here))
        page.on("dialog", lambda d: (self.dialogs.append(d.message), d.dismiss()))
        page.goto(address)
        self.box = page.locator("#box textarea")
        self.box.wait_for()

    def _note(self, url: str, here: str) -> None:
        if urlsplit(url).scheme in ("http", "https", "ws") and urlsplit(url).netloc != here:
            self.foreign.append(url)

    def attach(self, *files: Path) -> None:
        self.page.locator("#box input[type=file]").set_input_files([str(file) for file in files])
        self.page.wait_for_function(
            "n => document.querySelectorAll('#box .thumbnail-item').length >= n", arg=len(files)
        )

    def send(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def said(self) -> list[str]:
        """What the model has said, message by message."""
        return self.page.locator("#chat [data-testid=bot]").all_inner_texts()

    def asked(self) -> list[str]:
        """What the person has said, message by message, pictures left out."""
        texts = self.page.locator("#chat [data-testid=user]").all_inner_texts()
        return [text for text in texts if text.strip()]

    @property
    def line(self) -> str:
        return self.page.locator("#line p").inner_text()

    def wait_for_line(self, text: str, seconds: float = 10) -> None:
        self.page.locator("#line p", has_text=text).wait_for(timeout=1000 * seconds)

    def wait_for_answer(self, seconds: float = 10) -> str:
        """Wait for the line of costs that ends an answer; return the answer."""
        self.wait_for_line("tokens/s", seconds)
        return self.said()[-1].strip()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[[Backend], ChatPage]]:
    """Serve a backend and open its page; everything is closed after the test."""
    open_things = []

    def open_it(backend: Backend) -> ChatPage:
        server = served(backend)
        open_things.append(lambda: server.__exit__(None, None, None))
        address = server.__enter__()
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        open_things.append(page.close)
        return ChatPage(page, address)

    yield open_it
    for close in reversed(open_things):
        close()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two picture files: red.png, wide, and blue.png, tall."""
    files = [tmp_path / "red.png", tmp_path / "blue.png"]
    Image.new("RGB", (300, 200), "red").save(files[0])
    Image.new("RGB", (200, 300), "blue").save(files[1])
    return files
