"""Renew the README's pictures of the page: `make screenshots`."""

from pathlib import Path

from playwright.sync_api import sync_playwright

from gemma3vl_app.manager import ModelManager
from tests.web.conftest import CHROMIUM, ChatPage, served

FOLDER = Path("docs/pictures")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with (
        ModelManager() as manager,
        served(manager.load("demo"), manager=manager) as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        desk = ChatPage(browser.new_page(viewport={"width": 1180, "height": 760}), address)
        desk.page.get_by_text("Where is the blue square?").click()
        desk.wait_for_answer(60)
        desk.send("What color is the circle?")
        desk.wait_for_messages(4)
        desk.wait_for_answer(60)
        desk.attach(Path("docs/circle.png"))
        desk.page.screenshot(path=FOLDER / "chat.png")
        desk.page.get_by_role("tab", name="Models").click()
        desk.page.locator("#models .model").first.wait_for()
        desk.page.screenshot(path=FOLDER / "models.png")
        phone = ChatPage(
            browser.new_page(viewport={"width": 390, "height": 760}, color_scheme="dark"), address
        )
        phone.page.get_by_text("What is in the picture?").click()
        phone.wait_for_answer(60)
        phone.page.screenshot(path=FOLDER / "phone.png")


if __name__ == "__main__":
    main()
