"""JupyterLab itself in a real browser: served from a folder of its own, and gone afterwards."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
START_SEC = 300
SHOTS = os.environ.get("GEMMA3VL_SCREENSHOTS")  # a folder, for whoever wants to look


@contextmanager
def served(folder: Path, name: str, notebook: dict) -> Iterator[str]:
    """Serve a notebook in `folder`; yields its address."""
    (folder / name).write_text(json.dumps(notebook), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    settings = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *(f"--ServerApp.root_dir={folder}", f"--ServerApp.port={port}"),
            *(f"--IdentityProvider.token={token}", "--LabApp.news_url=None"),
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ],
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/api?token={token}")
        yield f"{address}/lab/tree/{name}?token={token}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(address: str) -> None:
    until = time.monotonic() + START_SEC
    while True:
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            assert time.monotonic() < until, "JupyterLab did not start"
            time.sleep(0.5)


@contextmanager
def shown(address: str) -> Iterator[Page]:
    """Open an address in a browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1000})
        page.set_default_timeout(1000 * START_SEC)
        page.goto(address)
        yield page
        browser.close()


def run_all(page: Page) -> None:
    """Run all cells of the notebook that is shown, once its kernel is there."""
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text("| Idle").first.wait_for()
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.get_by_text("Run All Cells", exact=True).click()


def look(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


# Pastes pictures of one colour, as the clipboard has them: `files` are names, colours and sides.
_PASTE = """async (files) => {
  const data = new DataTransfer();
  for (const { name, colour, side, noise } of files) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = side;
    const pen = canvas.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, side, side);
    pen.fillStyle = colour;
    pen.fillRect(side / 4, side / 4, side / 2, side / 2);
    if (noise) {
      const pixels = pen.getImageData(0, 0, side, side);
      for (let at = 0; at < pixels.data.length; at++)
        if (at % 4 < 3) pixels.data[at] = 256 * Math.random();
      pen.putImageData(pixels, 0, 0);
    }
    const blob = await new Promise(done => canvas.toBlob(done, "image/png"));
    data.items.add(new File([blob], name, { type: "image/png" }));
  }
  document.activeElement.dispatchEvent(
    new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
}"""


def paste(page: Page, *names: str, colour: str = "blue", side: int = 256, noise: bool = False):
    """Paste pictures of a square; with `noise`, of 3 bytes a pixel."""
    files = [{"name": name, "colour": colour, "side": side, "noise": noise} for name in names]
    page.evaluate(_PASTE, files)
