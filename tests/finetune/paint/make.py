"""Draw the 20 pictures again, with the programs that drew them; run from this folder.

Needs ImageMagick, Inkscape, GIMP, matplotlib, and playwright with /usr/bin/chromium. The pictures
are what people's programs make, so nothing of the generator of training scenes is used here.
`pictures.json` says what is on them: colour, shape and place of each thing, in reading order.
"""

import base64
import subprocess
from pathlib import Path

IMAGEMAGICK = {
    "imagemagick-1.png": "-size 400x400 xc:white -fill red -draw 'circle 200,200 200,120'",
    "imagemagick-2.png": (
        "-size 480x360 xc:lightyellow -fill blue -draw 'rectangle 50,40 130,120' "
        "-fill green -draw 'polygon 380,330 300,330 340,250'"
    ),
    "imagemagick-3.jpg": (
        "-size 300x300 gradient:white-gray90 -fill none -stroke purple -strokewidth 8 "
        "-draw 'ellipse 150,60 70,30 0,360' -fill orange -stroke none "
        "-draw 'rectangle 40,230 120,265' -fill black -draw 'circle 245,150 245,120' -quality 70"
    ),
    "imagemagick-4.png": (
        "-size 256x256 xc:black -fill yellow "
        "-draw 'polygon 60,20 72,52 106,52 78,72 89,105 60,85 31,105 42,72 14,52 48,52' "
        "-fill white -draw 'rectangle 170,170 220,220'"
    ),
}

_SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}">{body}</svg>'
INKSCAPE = {
    "inkscape-1.png": (
        *(320, 320),
        '<rect width="320" height="320" fill="#fff"/>'
        '<rect x="110" y="110" width="100" height="100" rx="2" fill="#008000" stroke="#004000" '
        'stroke-width="4"/>',
    ),
    "inkscape-2.png": (
        *(400, 300),
        '<rect width="400" height="300" fill="#eef"/>'
        '<circle cx="70" cy="150" r="45" fill="#ffa500"/>'
        '<path d="M330 110 L365 150 L330 190 L295 150 Z" transform="scale(1 1)" fill="#800080"/>',
    ),
    "inkscape-3.png": (
        *(360, 360),
        '<defs><linearGradient id="g" x2="0" y2="1"><stop stop-color="#f55"/>'
        '<stop offset="1" stop-color="#c00"/></linearGradient></defs>'
        '<rect width="360" height="360" fill="#ffffff"/>'
        '<path d="M290 100 C290 70 250 65 250 95 C250 65 210 70 210 100 C210 130 250 150 250 160 '
        'C250 150 290 130 290 100" transform="translate(40 -40)" fill="url(#g)"/>'
        '<ellipse cx="75" cy="300" rx="55" ry="25" fill="#0000ff"/>',
    ),
    "inkscape-4.png": (
        *(300, 300),
        '<rect width="300" height="300" fill="#d0d0d0"/>'
        '<path d="M135 20 h30 v30 h30 v30 h-30 v30 h-30 v-30 h-30 v-30 h30 z" fill="#00ced1"/>'
        '<circle cx="50" cy="250" r="32" fill="none" stroke="#8b4513" stroke-width="9"/>'
        '<path d="M250 215 L285 280 L215 280 Z" fill="#ff69b4"/>',
    ),
}

_GIMP_START = (
    "(let* ((image (car (gimp-image-new {w} {h} RGB)))"
    ' (layer (car (gimp-layer-new image {w} {h} RGB-IMAGE "a" 100 LAYER-MODE-NORMAL))))'
    " (gimp-image-insert-layer image layer 0 0)"
    " (gimp-context-set-background '({back})) (gimp-drawable-fill layer FILL-BACKGROUND)"
    " (gimp-context-set-antialias TRUE)"
)
_GIMP_FILL = (
    " (gimp-context-set-foreground '({colour})) ({select})"
    " (gimp-edit-fill layer FILL-FOREGROUND) (gimp-selection-none image)"
)
_GIMP_END = ' (file-png-save RUN-NONINTERACTIVE image layer "{file}" "a" 0 9 0 0 0 0 0))'
_OVAL = "gimp-image-select-ellipse image CHANNEL-OP-REPLACE {} {} {} {}"
_BOX = "gimp-image-select-rectangle image CHANNEL-OP-REPLACE {} {} {} {}"
_FREE = "gimp-image-select-polygon image CHANNEL-OP-REPLACE {} '#({})"
GIMP = {
    "gimp-1.png": ((300, 300), "255 255 255", [("0 0 255", _OVAL.format(95, 95, 110, 110))]),
    "gimp-2.png": (
        (400, 300),
        "255 255 255",
        [
            ("255 0 0", _BOX.format(30, 115, 70, 70)),
            ("255 220 0", _OVAL.format(290, 115, 75, 75)),
        ],
    ),
    "gimp-3.png": (
        (320, 240),
        "60 60 60",
        [
            ("255 255 255", _OVAL.format(25, 20, 60, 60)),
            ("255 140 0", _FREE.format(6, "250 220 210 150 290 150")),
        ],
    ),
    "gimp-4.png": (
        (360, 360),
        "230 240 255",
        [
            ("0 150 60", _BOX.format(35, 40, 110, 45)),
            ("128 0 128", _OVAL.format(145, 145, 70, 70)),
            ("0 0 0", _BOX.format(275, 275, 55, 55)),
        ],
    ),
}

CANVAS = {
    "canvas-1.png": (
        *(300, 300),
        "c.fillStyle='white';c.fillRect(0,0,300,300);c.fillStyle='purple';c.beginPath();"
        "c.moveTo(150,80);c.lineTo(220,210);c.lineTo(80,210);c.fill();",
    ),
    "canvas-2.png": (
        *(400, 400),
        "c.fillStyle='#fafafa';c.fillRect(0,0,400,400);c.fillStyle='green';c.beginPath();"
        "c.arc(330,70,40,0,7);c.fill();c.fillStyle='red';c.fillRect(40,300,70,70);",
    ),
    "canvas-3.png": (
        *(480, 360),
        "c.fillStyle='lightblue';c.fillRect(0,0,480,360);c.fillStyle='black';"
        "c.fillRect(60,150,140,60);c.fillStyle='yellow';c.beginPath();c.arc(400,180,45,0,7);"
        "c.fill();",
    ),
    "canvas-4.png": (
        *(320, 320),
        "c.fillStyle='white';c.fillRect(0,0,320,320);c.strokeStyle='blue';c.lineWidth=7;"
        "c.strokeRect(30,30,60,60);c.fillStyle='orange';c.beginPath();c.arc(160,160,35,0,7);"
        "c.fill();c.fillStyle='hotpink';c.beginPath();c.moveTo(265,225);c.lineTo(295,285);"
        "c.lineTo(235,285);c.fill();",
    ),
}


def imagemagick() -> None:
    for name, arguments in IMAGEMAGICK.items():
        subprocess.run(f"/usr/bin/convert {arguments} {name}", shell=True, check=True)


def inkscape() -> None:
    for name, (width, height, body) in INKSCAPE.items():
        drawing = Path("drawing.svg")
        drawing.write_text(_SVG.format(w=width, h=height, body=body))
        subprocess.run(["inkscape", drawing, f"--export-filename={name}"], check=True)
        drawing.unlink()


def gimp() -> None:
    for name, ((width, height), back, things) in GIMP.items():
        script = _GIMP_START.format(w=width, h=height, back=back)
        script += "".join(_GIMP_FILL.format(colour=c, select=select) for c, select in things)
        script += _GIMP_END.format(file=name)
        subprocess.run(["gimp", "-i", "-b", script, "-b", "(gimp-quit 0)"], check=True)


def plots() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Circle, Ellipse, Polygon, Rectangle, RegularPolygon

    pictures = {
        "matplotlib-1.png": ("white", [Circle((0.5, 0.5), 0.18, color="tab:blue")]),
        "matplotlib-2.png": (
            "whitesmoke",
            [
                Rectangle((0.08, 0.72), 0.2, 0.2, color="red"),
                Circle((0.82, 0.17), 0.12, color="green"),
            ],
        ),
        "matplotlib-3.png": (
            "white",
            [
                Ellipse((0.5, 0.82), 0.4, 0.17, color="purple"),
                Polygon([(0.1, 0.08), (0.34, 0.08), (0.22, 0.3)], color="orange"),
            ],
        ),
        "matplotlib-4.jpg": (
            "black",
            [
                RegularPolygon((0.18, 0.5), 4, radius=0.15, orientation=0.785, color="yellow"),
                Circle((0.82, 0.5), 0.11, color="white"),
            ],
        ),
    }
    for name, (background, patches) in pictures.items():
        figure = pyplot.figure(figsize=(3.2, 3.2), facecolor=background)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for patch in patches:
            axes.add_patch(patch)
        figure.savefig(name, dpi=100, facecolor=background)


def canvas() -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        for name, (width, height, code) in CANVAS.items():
            data = page.evaluate(
                f"() => {{const e=document.createElement('canvas');e.width={width};"
                f"e.height={height};const c=e.getContext('2d');{code}return e.toDataURL();}}"
            )
            Path(name).write_bytes(base64.b64decode(data.split(",")[1]))
        browser.close()


if __name__ == "__main__":
    for draw in (imagemagick, inkscape, gimp, plots, canvas):
        draw()
