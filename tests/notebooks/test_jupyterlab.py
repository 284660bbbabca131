"""JupyterLab itself in a real browser: 01 runs, and its widget answers about a picture."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

pytestmark = [pytest.mark.notebook, pytest.mark.slow]

CHROMIUM = "/usr/bin/chromium"
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_quickstart.ipynb"
START_SEC, RUN_SEC = 300, 600
SHOTS = os.environ.get("GEMMA3VL_SCREENSHOTS")  # a folder, for whoever wants to look


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """Serve a copy of the notebook with the last cell, which closes the model, left out."""
    folder = tmp_path_factory.mktemp("lab")
    data = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    data["cells"] = data["cells"][:-1]
    (folder / NOTEBOOK.name).write_text(json.dumps(data), encoding="utf-8")
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
        yield f"{address}/lab/tree/{NOTEBOOK.name}?token={token}"
    finally:
        server.terminate()
        server.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(address: str) -> None:
    until = time.monotonic() + START_SEC
    while True:
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            assert time.monotonic() < until, "JupyterLab did not start"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def page(lab) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1000})
        page.set_default_timeout(1000 * START_SEC)
        page.goto(lab)
        yield page
        browser.close()


def look(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


def test_the_quickstart_runs_and_its_widget_answers_about_a_picture(page):
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text("| Idle").first.wait_for()
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.get_by_text("Run All Cells", exact=True).click()

    chat = page.locator(".gemma3vl-chat")
    chat.get_by_text("Red.", exact=True).first.wait_for(timeout=1000 * RUN_SEC)
    chat.scroll_into_view_if_needed()
    look(page, "lab-widget")
    assert not page.locator(".jp-RenderedText[data-mime-type*=stderr] .ansi-red-fg").count()

    answers_about_a_picture_that_is_pasted(page, chat)
    look(page, "lab-pasted")


def answers_about_a_picture_that_is_pasted(page, chat):
    box = chat.locator("textarea")
    box.click()
    page.evaluate(PASTE)
    chat.locator("figure", has_text="blue.png").wait_for()
    box.fill("What color is the square?")
    look(page, "lab-ready")
    chat.get_by_role("button", name="Send").click()
    chat.get_by_text("Blue.", exact=True).wait_for(timeout=1000 * RUN_SEC)


# A picture of a blue square, as the clipboard has it.
PASTE = """async () => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 256;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, 256, 256);
  pen.fillStyle = "blue";
  pen.fillRect(64, 64, 128, 128);
  const blob = await new Promise(done => canvas.toBlob(done, "image/png"));
  const data = new DataTransfer();
  data.items.add(new File([blob], "blue.png", { type: "image/png" }));
  document.activeElement.dispatchEvent(
    new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
}"""
