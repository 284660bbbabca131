"""Pictures small enough for a notebook's file, as data addresses; no metadata leaves with them."""

from __future__ import annotations

import base64
import io
from html import escape
from weakref import WeakKeyDictionary

from PIL import Image

from gemma3vl_app.generation import Box
from gemma3vl_app.notebook.shown import LINE, MUTED
from gemma3vl_app.pictures import Picture

SIDE = 320  # pixels of the longer side
_JPEG_QUALITY = 85
# By side. A chat is drawn anew with everything that is said; its pictures need not be.
_drawn: WeakKeyDictionary[Picture, dict[int, str]] = WeakKeyDictionary()


def figure(image: Image.Image, caption: str, *, side: int = SIDE, exact: bool = False) -> str:
    """Return an image with a line below; with `exact`, its very pixels whatever their size."""
    return _framed(_address(image, None if exact else side), caption, side)


def of_picture(picture: Picture, *, note: str = "", side: int = SIDE) -> str:
    """Return a picture's thumbnail with its name and size."""
    addresses = _drawn.setdefault(picture, {})
    if side not in addresses:
        addresses[side] = _address(picture.rgb, side)
    return _framed(addresses[side], label(picture, note), side)


def label(picture: Picture, note: str = "") -> str:
    """Say in a line which picture it is."""
    return f"{picture.name} · {picture.width} x {picture.height}" + (f" · {note}" if note else "")


def cropped(picture: Picture, boxes: tuple[Box, ...]) -> list[Image.Image]:
    """Return the picture's crops."""
    rgb = picture.rgb
    return [rgb.crop(box) for box in boxes]


def _framed(address: str, caption: str, side: int) -> str:
    return (
        f'<figure style="display:inline-block;margin:0 .8em .6em 0;max-width:{side}px">'
        f'<img src="{address}" alt="{escape(caption, quote=True)}" '
        f'style="display:block;max-width:100%;height:auto;border:1px solid {LINE};'
        f'border-radius:.4em">'
        f'<figcaption style="{MUTED};overflow-wrap:anywhere">{escape(caption)}'
        f"</figcaption></figure>"
    )


def _address(image: Image.Image, side: int | None) -> str:
    """Return an image of at most `side` as a data address: PNG, or JPEG where that is smaller.

    Without a `side` it is exact, and a PNG.
    """
    if side is None:
        return _data("png", _encoded(image, "png", optimize=True))
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    png = _encoded(small, "png", optimize=True)
    jpeg = _encoded(small, "jpeg", quality=_JPEG_QUALITY)
    return _data("jpeg", jpeg) if len(jpeg) < len(png) else _data("png", png)


def _encoded(image: Image.Image, format: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _data(format: str, data: bytes) -> str:
    return f"data:image/{format};base64,{base64.b64encode(data).decode('ascii')}"
