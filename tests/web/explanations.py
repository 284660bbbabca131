"""Renew the figures of docs/explain.md, one for each method, on the demo: `make screenshots`."""

from pathlib import Path

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, sync_playwright

import gemma3vl_app as gv
from gemma3vl_app.notebook.displays import shown
from tests.web.conftest import CHROMIUM

FOLDER = Path("docs/pictures")
WIDTH = 640
PAGE = """<body style="margin:0;background:#fff;color:#1b1b1b;font:15px system-ui,sans-serif">
<div id="figure" style="display:inline-block;max-width:{width}px;padding:12px">{html}</div>"""


def three_shapes() -> gv.Picture:
    """Draw the picture of notebook 04."""
    drawing = Image.new("RGB", (300, 260), "white")
    pen = ImageDraw.Draw(drawing)
    pen.ellipse((25, 25, 95, 95), fill="red")
    pen.rectangle((195, 60, 265, 130), fill="blue")
    pen.polygon(((60, 235), (100, 165), (140, 235)), fill="green")
    return gv.Picture.open(drawing, name="three shapes.png")


def wide() -> gv.Picture:
    """Draw a long picture, which is cropped."""
    drawing = Image.new("RGB", (1400, 400), "white")
    for n, colour in enumerate(("red", "green", "blue")):
        ImageDraw.Draw(drawing).ellipse((80 + 500 * n, 90, 300 + 500 * n, 310), fill=colour)
    return gv.Picture.open(drawing, name="wide.png")


def figures(backend: gv.Backend) -> dict[str, object]:
    """Return what each method says of the same picture, by the figure's name."""
    explain = gv.explain
    chat = gv.Chat(backend, sampling=gv.Greedy())
    answer = chat.ask("What color is the square?", images=[three_shapes()])
    asked = (backend, chat.conversation, answer, "Blue")
    maps = {
        "attention": explain.attention(*asked),
        "rollout": explain.attention(*asked, rollout=True),
        "occlusion": explain.occlusion(*asked),
        "saliency": explain.saliency(*asked),
        "pixels": explain.saliency(*asked, through_tower=True),
    }
    description = chat.ask("Describe the picture.")
    said = (backend, chat.conversation, description)
    question = gv.Conversation().user(three_shapes(), "Which shape is at the bottom?")
    cropped = gv.Conversation().user(wide(), "Describe the picture.")
    sides = (explain.Side(backend=backend, crops=crops) for crops in ("off", "on"))
    return {
        **maps,
        "tokens": explain.tokens(*said),
        "next": explain.next(backend, question, "The shape at the bottom is a", top=6),
        "layers": explain.layers(*said, range(6)),
        "compare": explain.compare(cropped, *sides),
    }


def photograph(browser: Browser, name: str, html: str) -> None:
    """Write a figure as it looks in a notebook, as a PNG of few colours."""
    page = browser.new_page(viewport={"width": WIDTH + 40, "height": 900})
    page.set_content(PAGE.format(width=WIDTH, html=html))
    path = FOLDER / f"explain-{name}.png"
    page.locator("#figure").screenshot(path=path)
    page.close()
    Image.open(path).quantize(128).save(path, optimize=True)


def main() -> None:
    with gv.load("demo") as backend, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, value in figures(backend).items():
            photograph(browser, name, shown(value)._repr_html_())


if __name__ == "__main__":
    main()
