"""Pictures small enough for a notebook's file, as data addresses; no metadata leaves with them."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from gemma3vl_app.generation import Box
from gemma3vl_app.notebook.shown import LINE, MUTED
from gemma3vl_app.pictures import Picture

SIDE = 320  # pixels of the longer side
_JPEG_QUALITY = 85


def figure(image: Image.Image, caption: str, *, side: int = SIDE, exact: bool = False) -> str:
    """Return an image with a line below; with `exact`, its very pixels whatever their size."""
    small = image
    if not exact:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return (
        f'<figure style="display:inline-block;margin:0 .8em .6em 0;max-width:{side}px">'
        f'<img src="{_address(small, exact=exact)}" alt="{escape(caption, quote=True)}" '
        f'style="display:block;max-width:100%;height:auto;border:1px solid {LINE};'
        f'border-radius:.4em">'
        f'<figcaption style="{MUTED};overflow-wrap:anywhere">{escape(caption)}'
        f"</figcaption></figure>"
    )


def of_picture(picture: Picture, *, note: str = "", side: int = SIDE) -> str:
    """Return a picture's thumbnail with its name and size."""
    return figure(picture.rgb, label(picture, note), side=side)


def label(picture: Picture, note: str = "") -> str:
    """Say in a line which picture it is."""
    return f"{picture.name} · {picture.width} x {picture.height}" + (f" · {note}" if note else "")


def cropped(picture: Picture, boxes: tuple[Box, ...]) -> list[Image.Image]:
    """Return the picture's crops."""
    rgb = picture.rgb
    return [rgb.crop(box) for box in boxes]


def _address(image: Image.Image, *, exact: bool) -> str:
    """Return an image as a data address: PNG, or JPEG where that is smaller and may be."""
    png = _encoded(image, "png", optimize=True)
    if not exact:
        jpeg = _encoded(image, "jpeg", quality=_JPEG_QUALITY)
        if len(jpeg) < len(png):
            return _data("jpeg", jpeg)
    return _data("png", png)


def _encoded(image: Image.Image, format: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _data(format: str, data: bytes) -> str:
    return f"data:image/{format};base64,{base64.b64encode(data).decode('ascii')}"
