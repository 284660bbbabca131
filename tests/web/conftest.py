"""A real page in a real browser: the app served on a free port, and chromium without a window."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.manager import ModelManager
from gemma3vl_app.server import create_app
from gemma3vl_app.store import ConversationStore

CHROMIUM = "/usr/bin/chromium"
# A camera that shows a moving figure, and may be used without asking.
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@contextmanager
def served(
    backend: Backend,
    store: ConversationStore | None = None,
    *,
    manager: ModelManager | None = None,
    port: int = 0,
    **access: Any,
) -> Iterator[str]:
    """Serve the page for `backend`; yield its address. `access` is `create_app`'s."""
    app = create_app(backend, store=store, manager=manager, **access)
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1)
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
        self.box = page.locator("#composer textarea")
        self.box.wait_for()
        page.locator("#shelf .new").wait_for()
        self.wait_until_loaded()

    def wait_until_loaded(self) -> None:
        """Wait until the server has said what there is: messages, or a welcome."""
        self.page.locator("#conversation :is(.message, .welcome)").first.wait_for()

    def _note(self, url: str, here: str) -> None:
        if urlsplit(url).scheme in ("http", "https", "ws") and urlsplit(url).netloc != here:
            self.foreign.append(url)

    # --- the box ---

    def attach(self, *files: Path) -> None:
        """Choose files, and wait until the box says what they cost."""
        before = self.page.locator("#composer .item").count()
        self.page.locator("#composer input[type=file]").set_input_files([str(f) for f in files])
        self.wait_for_items(before + len(files))

    def wait_for_items(self, count: int) -> None:
        self.page.wait_for_function(
            "n => [...document.querySelectorAll('#composer .item .cost')]"
            ".filter(each => each.textContent.includes('tokens')).length === n",
            arg=count,
        )

    def names(self) -> list[str]:
        """Names of the pictures in the box."""
        return self.page.locator("#composer .item .name").all_inner_texts()

    def send(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def stop(self) -> None:
        self.page.locator("#composer .stop").click()

    # --- the conversation ---

    def said(self) -> list[str]:
        """What the model has said, message by message."""
        return self.page.locator("#conversation .assistant .text").all_inner_texts()

    def asked(self) -> list[str]:
        """What the person has said, message by message, pictures left out."""
        return self.page.locator("#conversation .user .text").all_inner_texts()

    def wait_for_messages(self, count: int) -> None:
        self.page.wait_for_function(
            "n => document.querySelectorAll('#conversation .message').length === n", arg=count
        )

    def wait_for_text(self) -> None:
        """Wait until the model has begun to speak."""
        self.page.locator("#conversation .assistant").first.wait_for()

    def press(self, name: str, *, message: int = -1) -> None:
        """Press a button at a message."""
        shown = self.page.locator("#conversation .message")
        at = shown.nth(message) if message >= 0 else shown.last
        at.hover()
        at.get_by_role("button", name=name, exact=True).click()

    def edit(self, message: int, text: str) -> None:
        """Say a message differently."""
        self.press("Edit", message=message)
        self.page.locator("#conversation .editor").fill(text)
        self.page.locator("#conversation .editor").press("Enter")

    @property
    def line(self) -> str:
        return self.page.locator("#line p[role=status]").inner_text()

    def wait_for_line(self, text: str, seconds: float = 10) -> None:
        self.page.locator("#line p[role=status]", has_text=text).wait_for(timeout=1000 * seconds)

    def wait_for_answer(self, seconds: float = 10) -> str:
        """Wait until no answer is being written; return the last one."""
        self.page.locator("#conversation[aria-busy=true], #conversation [aria-busy=true]").wait_for(
            state="detached", timeout=1000 * seconds
        )
        self.wait_for_line("tokens/s", seconds)
        return self.said()[-1].strip()

    # --- the list ---

    def titles(self) -> list[str]:
        """What the list of conversations shows."""
        return [text.strip() for text in self.page.locator("#shelf .title").all_inner_texts()]

    def menu(self, title: str, item: str) -> None:
        """Choose something from the menu of a conversation in the list."""
        entry = self.page.locator("#shelf .entry", has_text=title)
        entry.get_by_role("button", name="More").click()
        entry.get_by_role("button", name=item, exact=True).click()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., ChatPage]]:
    """Serve a backend and open its page; everything is closed after the test."""
    open_things = []

    def open_it(
        backend: Backend, store: ConversationStore | None = None, **context: Any
    ) -> ChatPage:
        server = served(backend, store)
        open_things.append(lambda: server.__exit__(None, None, None))
        address = server.__enter__()
        page = browser.new_page(viewport={"width": 1100, "height": 800}, **context)
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
