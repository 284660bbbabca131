"""Pictures on their way out: encoded from pixels, so that no metadata leaves, under safe names."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from urllib.parse import quote

from PIL import Image

from gemma3vl_app.export.wording import one_line
from gemma3vl_app.pictures import DEFAULT_LIMITS, Picture
from gemma3vl_app.transcript import Transcript

SHOWN_SIDE = 1600  # pixels; more is of no use on a page
_SHOWN_JPEG_QUALITY = 90
_EXACT_JPEG_QUALITY = 95
_JPEG_START = b"\xff\xd8\xff"
_NAME_CHARS = 40


@dataclass(frozen=True)
class Encoded:
    """A picture as a file's bytes, of format "png" or "jpeg"; width and height in pixels."""

    data: bytes
    format: str
    width: int
    height: int


def encode_shown(picture: Picture, side: int = SHOWN_SIDE) -> Encoded:
    """Encode for people's eyes: at most `side` pixels a side; photos (JPEG) stay JPEG."""
    image = picture.rgb
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    if is_photo(picture):
        return _encode(image, "jpeg", quality=_SHOWN_JPEG_QUALITY)
    return _encode(image, "png")


def is_photo(picture: Picture) -> bool:
    """Whether a picture came as JPEG, and is shown as one."""
    return picture.data.startswith(_JPEG_START)


def encode_exact(picture: Picture) -> Encoded:
    """Encode for models: the very pixels as PNG, or JPEG where that is too large to be opened."""
    exact = _encode(picture.rgb, "png")
    if len(exact.data) <= DEFAULT_LIMITS.max_bytes:
        return exact
    return _encode(picture.rgb, "jpeg", quality=_EXACT_JPEG_QUALITY, subsampling=0)


def _encode(image: Image.Image, format: str, **options: int) -> Encoded:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Encoded(buffer.getvalue(), format, image.width, image.height)


class PictureFiles:
    """The picture files beside an export, one for each different picture that it names.

    Names depend on the transcript and the picture's own bytes only, so that exports of one chat to
    several kinds of files can share a folder.
    """

    def __init__(self, transcript: Transcript, folder: str, *, exact: bool) -> None:
        """Collect files of a folder called `folder`; `exact` as models, not people, see them."""
        self.files: dict[str, bytes] = {}
        self._folder = folder
        self._encode = encode_exact if exact else encode_shown
        pictures = (picture for turn in transcript.turns for picture in turn.message.pictures)
        digests = dict.fromkeys(picture.sha256 for picture in pictures)
        self._numbers = {digest: number for number, digest in enumerate(digests, start=1)}
        self._names: dict[str, str] = {}

    def path(self, picture: Picture) -> str:
        """Return the picture's path relative to the export, with "/" on every system."""
        name = self._names.get(picture.sha256)
        if name is None:
            encoded = self._encode(picture)
            small = "" if encoded.width == picture.width else "-small"
            suffix = ".jpg" if encoded.format == "jpeg" else ".png"
            number = self._numbers[picture.sha256]
            name = f"{number:02}-{safe_stem(picture.name)}{small}{suffix}"
            self._names[picture.sha256] = name
            self.files[name] = encoded.data
        return f"{self._folder}/{name}"

    def link(self, picture: Picture) -> str:
        """Return `path` quoted for a link: the folder's name may hold anything."""
        return quote(self.path(picture).encode("utf-8", "surrogateescape"))


def safe_stem(name: str) -> str:
    """Return a name without its suffix, made of A-Z, a-z, 0-9, ".", "_" and "-" only."""
    stem = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", one_line(name))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-")[:_NAME_CHARS].strip(".-") or "picture"
