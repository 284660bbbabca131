"""The picture of a conversation as a value: equal pixels are an equal picture, from any source.

Knows how a picture is read, named, hashed and kept decoded for a while. Does not know colour and
formats (`picture_decoding`), PDFs (`pdf_pages`), the processes that decode (`picture_workers`) or
models.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
import unicodedata
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gemma3vl_app.errors import PictureError
from gemma3vl_app.picture_decoding import (
    MIB,
    PictureLimits,
    check_bytes,
    decode_loaded,
    encode_png,
)
from gemma3vl_app.picture_workers import decode, render_pages

__all__ = ["DEFAULT_LIMITS", "Crops", "Picture", "PictureLimits", "PictureSource"]

Crops = Literal["off", "on", "auto"]
DEFAULT_LIMITS = PictureLimits()
_MAX_NAME = 80
_CACHE_BYTES = 1 << 28


@dataclass(frozen=True)
class Picture:
    """A validated picture; equality and hash are those of its pixels and of `crops` only.

    `data` is the encoded file as given (PNG when it came from PIL, numpy or a PDF), `sha256` the
    hex digest of mode, size and decoded pixels, `width` and `height` those of the upright picture.
    """

    data: bytes = field(compare=False, repr=False)
    sha256: str
    name: str = field(compare=False)
    crops: Crops = "off"
    width: int = field(compare=False, kw_only=True)
    height: int = field(compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.crops not in ("off", "on", "auto"):
            raise PictureError(
                f"Picture '{self.name}' has an unknown value for crops. Use 'off', 'on' or 'auto'."
            )

    @staticmethod
    def open(
        source: PictureSource,
        *,
        name: str | None = None,
        crops: Crops | None = None,
        limits: PictureLimits = DEFAULT_LIMITS,
    ) -> Picture:
        """Read, check and decode a path, encoded bytes, a PIL image or a numpy array.

        Arrays are uint8 of shape (height, width), (height, width, 3) or (height, width, 4).
        `crops` is "auto" unless given; a `Picture` comes back as it is, but for what is given
        here. A string is always a path on this machine: never pass one on from a stranger.
        Raises `PictureError`.
        """
        if isinstance(source, Picture):
            return replace(
                source,
                name=source.name if name is None else clean_name(name),
                crops=source.crops if crops is None else crops,
            )
        label = clean_name(_own_name(source) if name is None else name)
        if isinstance(source, np.ndarray):
            source = _image_from_array(source, label)
        if isinstance(source, Image.Image):
            rgb = decode_loaded(source, label, limits)
            return _from_rgb(rgb, label, crops or "auto", limits)
        data = _read(source, label, limits)
        return _remember(decode(data, label, limits), data, label, crops or "auto")

    @staticmethod
    def pages(
        pdf: str | Path | bytes,
        *,
        name: str | None = None,
        crops: Crops | None = None,
        limits: PictureLimits = DEFAULT_LIMITS,
    ) -> tuple[Picture, ...]:
        """Render every page of a PDF as a picture named like "file.pdf, page 3".

        Raises `PictureError` for encrypted or damaged files and for more pages than the limit.
        """
        label = clean_name(_own_name(pdf) if name is None else name)
        data = _read(pdf, label, limits)
        return tuple(
            _from_rgb(rgb, f"{label}, page {number}", crops or "auto", limits)
            for number, rgb in enumerate(render_pages(data, label, limits), start=1)
        )

    def with_crops(self, crops: Crops) -> Picture:
        """Return this picture with another value of `crops`."""
        return replace(self, crops=crops)

    @property
    def rgb(self) -> Image.Image:
        """The upright, flattened, 8-bit sRGB picture of mode "RGB": a copy, yours to change."""
        image = _decoded.get(self.sha256)
        if image is None:
            image = decode(self.data, self.name, self._own_limits())
            _decoded.put(self.sha256, image)
        return image.copy()

    def _own_limits(self) -> PictureLimits:
        """Return limits that `data` met when it was opened, whatever limits were given then."""
        return PictureLimits(
            max_bytes=len(self.data),
            max_pixels=self.width * self.height,
            max_side=max(self.width, self.height),
            max_frames=2**32,
            max_scans=2**32,
        )


PictureSource = (
    str | Path | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8] | Picture
)


def _from_rgb(rgb: Image.Image, name: str, crops: Crops, limits: PictureLimits) -> Picture:
    """Make a picture of pixels without a file; its PNG must fit the limits, to be reopened."""
    data = encode_png(rgb)
    if len(data) > limits.max_bytes:
        raise PictureError(
            f"Picture '{name}' takes {len(data) / MIB:.1f} MiB as PNG; the limit is "
            f"{limits.max_bytes / MIB:.1f} MiB. Pass its file instead, or make it smaller."
        )
    return _remember(rgb, data, name, crops)


def _remember(rgb: Image.Image, data: bytes, name: str, crops: Crops) -> Picture:
    sha256 = _digest(rgb)
    picture = Picture(data, sha256, name, crops, width=rgb.width, height=rgb.height)
    _decoded.put(sha256, rgb)
    return picture


def _digest(rgb: Image.Image) -> str:
    """Return the SHA-256 of mode, size and pixels, strip by strip to need no second copy."""
    width, height = rgb.size
    digest = hashlib.sha256(f"{rgb.mode} {width} {height}\n".encode())
    rows = max(1, MIB // (3 * width))
    for top in range(0, height, rows):
        digest.update(rgb.crop((0, top, width, min(top + rows, height))).tobytes())
    return digest.hexdigest()


# --- names ----------------------------------------------------------------------------------------


def clean_name(name: str) -> str:
    """Return a name fit to show: no folders, no control characters, at most 80 characters."""
    if not isinstance(name, str):
        raise PictureError("A picture's name must be a string.")
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    visible = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in last)
    short = " ".join(visible.split())
    if len(short) > _MAX_NAME:
        short = f"{short[: _MAX_NAME - 21]}…{short[-20:]}"  # the end tells the kind of file
    return short or "picture"


def _own_name(source: object) -> str:
    if isinstance(source, str | Path):
        return os.fspath(source)
    file = getattr(source, "filename", "")  # of a picture that PIL opened
    return file if isinstance(file, str) else ""


# --- reading --------------------------------------------------------------------------------------


def _read(source: object, name: str, limits: PictureLimits) -> bytes:
    """Return the source's bytes, checked against the limit before they are read or copied."""
    if isinstance(source, bytes | bytearray | memoryview):
        check_bytes(memoryview(source).nbytes, name, limits)
        return bytes(source)
    if not isinstance(source, str | Path):
        raise PictureError(
            f"A {type(source).__name__} is not a picture. "
            "Pass a path, the file's bytes, a PIL image or a numpy array."
        )
    if re.match(r"(https?|ftp|data|file):", str(source), re.IGNORECASE):
        raise PictureError(
            "A web address was given where a picture's path is expected; addresses are not "
            "fetched. Download the picture and pass its path or its bytes."
        )
    try:
        return _read_file(source, name, limits)
    except FileNotFoundError as error:
        raise PictureError(f"Picture '{name}' was not found. Check its path.") from error
    except IsADirectoryError as error:
        raise PictureError(f"'{name}' is a folder, not a picture. Pass the files in it.") from error
    except (OSError, ValueError) as error:
        raise PictureError(
            f"Picture '{name}' cannot be read. Check its path and permissions."
        ) from error


def _read_file(path: str | Path, name: str, limits: PictureLimits) -> bytes:
    with open(path, "rb", opener=open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise PictureError(
                f"'{name}' is not a file but a pipe or a device. Pass a picture file."
            )
        check_bytes(status.st_size, name, limits)
        data = file.read(limits.max_bytes + 1)  # the file may have grown since
    check_bytes(len(data), name, limits)
    return data


def open_without_waiting(path: str, flags: int) -> int:
    """Open a path for `open(opener=...)`, without waiting for the writer of a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer


def _image_from_array(array: NDArray[Any], name: str) -> Image.Image:
    gray_or_colour = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not gray_or_colour or not array.size:
        raise PictureError(
            f"Array '{name}' is {array.dtype} of shape {tuple(array.shape)}; expected uint8 of "
            "shape (height, width), (height, width, 3) or (height, width, 4)."
        )
    return Image.fromarray(np.ascontiguousarray(array))


# --- decoded pictures -----------------------------------------------------------------------------


class _DecodedCache:
    """The decoded pictures used last, within a number of bytes; safe to use from any thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._bytes = 0
        self._images: OrderedDict[str, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, sha256: str) -> Image.Image | None:
        with self._lock:
            if sha256 in self._images:
                self._images.move_to_end(sha256)
            return self._images.get(sha256)

    def put(self, sha256: str, image: Image.Image) -> None:
        with self._lock:
            if sha256 not in self._images:
                self._bytes += _memory(image)
            self._images.setdefault(sha256, image)
            self._images.move_to_end(sha256)
            while self._bytes > self.max_bytes:
                _, oldest = self._images.popitem(last=False)
                self._bytes -= _memory(oldest)

    def clear(self) -> None:
        with self._lock:
            self._images.clear()
            self._bytes = 0


def _memory(image: Image.Image) -> int:
    return image.width * image.height * 4  # Pillow keeps RGB in four bytes a pixel


_decoded = _DecodedCache(_CACHE_BYTES)
