"""Pictures as data URLs: what the server decodes is what the user sees here, and nothing else."""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict

from PIL import Image

from gemma3vl_app.picture_decoding import encode_png
from gemma3vl_app.pictures import Picture

CACHE_BYTES = 64 << 20
LARGEST_PNG_PIXELS = 2_000_000  # of a larger one, a photo, PNG would be many MB
JPEG_QUALITY = 95


class DataUrls:
    """The data URLs of the pictures used last, within a number of bytes; safe from any thread."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._urls: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, picture: Picture) -> str:
        """Return the URL of a picture."""
        with self._lock:
            if url := self._urls.get(picture.sha256):
                self._urls.move_to_end(picture.sha256)
                return url
        url = data_url(picture)
        with self._lock:
            if picture.sha256 not in self._urls:
                self._urls[picture.sha256] = url
                self._bytes += len(url)
            while self._bytes > self._max_bytes and len(self._urls) > 1:
                self._bytes -= len(self._urls.popitem(last=False)[1])
        return url


def data_url(picture: Picture) -> str:
    """Return a picture as a data URL: its file as it is where that holds nothing but pixels.

    Otherwise it is written anew, upright and in sRGB: servers differ in what they make of a
    camera's orientation, of colour profiles and of transparency, and where a photo was taken is
    nobody's business. Small ones as PNG, exactly; large ones as JPEG.
    """
    kind = _plain_kind(picture.data)
    data = picture.data
    if kind is None:
        rgb = picture.rgb
        if rgb.width * rgb.height <= LARGEST_PNG_PIXELS:
            kind, data = "png", encode_png(rgb)
        else:
            kind, data = "jpeg", _as_jpeg(rgb)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _plain_kind(data: bytes) -> str | None:
    """Return "png" or "jpeg" for a file that says the same to every decoder, else None.

    Reads the header only; the whole file was decoded safely when the picture was opened.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            kind, known = image.format, {"dpi", "jfif", "jfif_version", "jfif_unit", "jfif_density"}
            extra = set(image.info) - known - {"progressive", "progression", "interlace"}
            is_plain = image.mode == "RGB" and not extra and not image.getexif()
    except (OSError, ValueError, SyntaxError):  # another format
        return None
    return kind.lower() if is_plain and kind in ("PNG", "JPEG") else None


def _as_jpeg(rgb: Image.Image) -> bytes:
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
