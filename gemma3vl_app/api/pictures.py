"""Pictures of a request: data URLs become `Picture`s; no path is opened.

Addresses of other hosts are fetched only where the operator has named some (`remote_pictures`).
"""

from __future__ import annotations

import base64
import binascii
import re

from gemma3vl_app.api.failures import RequestError
from gemma3vl_app.errors import PictureError, public_text
from gemma3vl_app.pictures import Crops, Picture
from gemma3vl_app.remote_pictures import RemotePictures

_DATA_URL = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.IGNORECASE)
_HOW = (
    "Send the picture itself as a data URL: data:image/png;base64,... with the file's bytes in "
    "base64."
)
_REMOTE = re.compile(r"\s*(https?|ftp)://", re.IGNORECASE)
_BLANKS = str.maketrans("", "", " \t\r\n")  # some clients break base64 into lines
_PIECE_CHARS = 1 << 20
CROPS: dict[str, Crops] = {"low": "off", "high": "on", "auto": "auto"}


def open_url(
    url: str, detail: str, number: int, param: str, remote: RemotePictures | None = None
) -> Picture:
    """Return picture `number` of a request; `detail` low, high or auto decides about crops.

    `remote` fetches what is an address; None fetches none. Raises `RequestError` for anything but
    a base64 data URL or an address that may be fetched, `PictureError` for what is in it.
    """
    is_remote = _REMOTE.match(url)
    if remote is not None and is_remote:
        try:
            fetched = remote.fetch(url.strip())
        except PictureError as error:
            raise RequestError(public_text(error), param=param, code="invalid_image_url") from error
        return Picture.open(fetched, name=f"picture {number}", crops=CROPS[detail])
    found = _DATA_URL.match(url)
    if found is None:
        why = "Addresses of pictures are not fetched." if is_remote else "This is no data URL."
        raise RequestError(f"{why} {_HOW}", param=param, code="invalid_image_url")
    kind, options = found[1].strip().lower(), found[2].lower()
    if ";base64" not in options or not (kind.startswith("image/") or not kind):
        raise RequestError(
            f"This data URL holds no picture in base64. {_HOW}",
            param=param,
            code="invalid_image_url",
        )
    try:
        data = _decoded(url[found.end() :])
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"The data URL's base64 is damaged. {_HOW}", param=param, code="invalid_image_url"
        ) from error
    return Picture.open(data, name=f"picture {number}", crops=CROPS[detail])


def _decoded(text: str) -> bytes:
    """Return the bytes of base64 text, decoded in pieces: other threads have turns in between.

    Python decodes one piece without letting go, and a whole picture would hold up every answer.
    Raises `binascii.Error` or `ValueError` for what is no base64.
    """
    parts: list[bytes] = []
    rest, is_padded = "", False
    for start in range(0, len(text), _PIECE_CHARS):
        piece = rest + text[start : start + _PIECE_CHARS].translate(_BLANKS)
        if is_padded and piece:
            raise binascii.Error("more comes after the padding")
        whole = len(piece) - len(piece) % 4
        rest = piece[whole:]
        parts.append(base64.b64decode(piece[:whole], validate=True))
        is_padded = piece[:whole].endswith("=")
    if rest:
        raise binascii.Error("the last group is not whole")
    return b"".join(parts)
