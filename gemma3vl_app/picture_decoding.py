"""Encoded bytes to upright, flattened, 8-bit sRGB pixels, within limits checked before decoding.

Knows formats, colour and limits. Does not know files, caches or what a picture is used for. Only
the first frame is ever read: multi-frame files are where image libraries have been weakest.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from gemma3vl_app.errors import PictureError

logger = logging.getLogger(__name__)

MIB = 1 << 20
_PILLOW_WARNS_AT = 89_478_485  # above this Pillow warns on its own; our limit has to come first


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """What is accepted; checked in this order: bytes, format, sides, pixels, frames and scans.

    `max_pixels` is width times height, at most 89,478,485 to come before Pillow's own limit.
    `max_frames` holds where the header states a number; `max_scans` bounds the passes of a
    progressive JPEG, each of which costs a walk over all pixels.
    """

    max_bytes: int = 25 * MIB
    max_pixels: int = 50_000_000
    max_side: int = 32_768
    max_frames: int = 2_000
    max_scans: int = 64
    max_pdf_pages: int = 50

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise ValueError("Every picture limit must be at least 1.")
        if self.max_pixels > _PILLOW_WARNS_AT:
            raise ValueError(f"max_pixels must be at most {_PILLOW_WARNS_AT:,}.")


# --- what the bytes are ---------------------------------------------------------------------------


_Opener = Callable[[io.BytesIO], ImageFile.ImageFile]
# The plugins are called directly: `Image.open` would also try, and warn, outside this allow-list.
_OPENERS: dict[str, _Opener] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
ACCEPTED = "PNG, JPEG, WebP, GIF and BMP"

_ACCEPTED_STARTS = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("BMP", re.compile(rb"BM")),
)
_REFUSED_STARTS = (
    ("a PDF", "open its pages instead", re.compile(rb".{0,1019}%PDF-", re.DOTALL)),
    ("an SVG drawing", "export it as PNG", re.compile(rb".{0,1019}<svg[\s>:]", re.DOTALL | re.I)),
    ("a HEIC photo", "save it as JPEG", re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL)),
    ("an AVIF picture", "save it as PNG or JPEG", re.compile(rb"....ftypavi", re.DOTALL)),
    ("a TIFF picture", "save it as PNG or JPEG", re.compile(rb"II[*+]\x00|MM\x00[*+]")),
    ("a JPEG 2000 picture", "save it as JPEG", re.compile(rb"\x00{3}\x0cjP  |\xff\x4f\xff\x51")),
    ("a JPEG XL picture", "save it as PNG or JPEG", re.compile(rb"\x00{3}\x0cJXL |\xff\x0a")),
    ("a web page", "save the picture itself", re.compile(rb"\s*<(!doctype html|html)", re.I)),
)


def picture_format(data: bytes, name: str) -> str:
    """Return the accepted format that `data` starts like; raises `PictureError` with advice."""
    if not data:
        raise PictureError(
            f"Picture '{name}' is empty (0 bytes). Check that it was saved or sent in full."
        )
    for accepted, start in _ACCEPTED_STARTS:
        if start.match(data):
            return accepted
    for what, advice, start in _REFUSED_STARTS:
        if start.match(data):
            raise PictureError(
                f"Picture '{name}' is {what}, which is not accepted: {advice}. "
                f"Accepted: {ACCEPTED}."
            )
    raise PictureError(
        f"'{name}' is not a picture in a known format. Save it as one that is accepted: {ACCEPTED}."
    )


# --- limits that the header answers ---------------------------------------------------------------


def check_bytes(size: int, name: str, limits: PictureLimits) -> None:
    """Raise `PictureError` when `size` bytes are more than the limit."""
    if size > limits.max_bytes:
        raise PictureError(
            f"'{name}' has {_mib(size)}; the limit is {_mib(limits.max_bytes)}. "
            "Send a smaller version."
        )


def check_size(width: int, height: int, name: str, limits: PictureLimits) -> None:
    """Raise `PictureError` when a side or the number of pixels is zero or beyond the limit."""
    if width < 1 or height < 1:
        raise PictureError(f"Picture '{name}' has no pixels ({width} x {height}).")
    if max(width, height) > limits.max_side:
        raise PictureError(
            f"Picture '{name}' is {width} x {height}; the limit for a side is {limits.max_side:,} "
            "pixels. Cut it or make it smaller."
        )
    if width * height > limits.max_pixels:
        raise PictureError(
            f"Picture '{name}' is {width} x {height} ({width * height / 1e6:.1f} million pixels); "
            f"the limit is {limits.max_pixels / 1e6:g} million. Make it smaller."
        )


def _check_before_opening(data: bytes, kind: str, name: str, limits: PictureLimits) -> None:
    """Check what would already cost memory or time while the plugin reads the header."""
    if kind == "WEBP":  # its plugin allocates two canvases when it opens
        size = _webp_size(data)
        if size is not None:
            check_size(*size, name, limits)
    if kind == "JPEG" and _jpeg_scans(data, limits.max_scans) > limits.max_scans:
        raise PictureError(
            f"Picture '{name}' is a JPEG of more than {limits.max_scans} scans, the limit. "
            "Save it again as an ordinary JPEG."
        )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the canvas that the first chunk states (RFC 9649); None without a whole header."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if chunk == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(
        body[8:10], "little"
    ) & 0x3FFF


class _GifBytes(io.BytesIO):
    """A GIF's bytes, refused when reading its header passes 1 MiB.

    The plugin joins comments in quadratic time, which a large file could make minutes.
    """

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name
        self.in_header = True

    def read(self, size: int | None = -1, /) -> bytes:
        if self.in_header and self.tell() > MIB:
            raise PictureError(
                f"Picture '{self.name}' has over {_mib(MIB)} of comments before its first frame. "
                "Save it again as PNG."
            )
        return super().read(size)


# All markers with a length: not stuffing, fill bytes, TEM, restarts or SOI.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]", re.DOTALL)


def _jpeg_scans(data: bytes, enough: int) -> int:
    """Count the scans of the first image (ITU T.81, annex B), at most one beyond `enough`."""
    scans, position = 0, 2
    while scans <= enough and (marker := _JPEG_MARKER.search(data, position)):
        position = marker.end()
        code = data[position - 1]
        if code == 0xD9:  # end of image
            break
        scans += code == 0xDA
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return scans


# --- decoding -------------------------------------------------------------------------------------


@contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """Turn whatever the image library raises into a `PictureError` in our own words."""
    try:
        yield
    except PictureError:
        raise
    except MemoryError as error:
        raise PictureError(
            f"There is not enough memory to decode picture '{name}'. Send a smaller version."
        ) from error
    except Exception as error:  # decoders raise nearly every type there is on damaged files
        raise PictureError(
            f"Picture '{name}' is damaged or cut off and cannot be decoded. Send or save it again."
        ) from error


def decode(data: bytes, name: str, limits: PictureLimits) -> Image.Image:
    """Return the first frame of `data` as an upright 8-bit sRGB picture of mode "RGB".

    Raises `PictureError` naming `name` for every problem: limits, unknown formats, damage.
    """
    check_bytes(len(data), name, limits)
    kind = picture_format(data, name)
    _check_before_opening(data, kind, name, limits)
    file = _GifBytes(data, name) if kind == "GIF" else io.BytesIO(data)
    with _plain_errors(name), _OPENERS[kind](file) as image:
        if isinstance(file, _GifBytes):
            file.in_header = False
        check_size(*image.size, name, limits)
        # A GIF's header states no number, and counting would walk past the first frame.
        frames = 1 if kind == "GIF" else getattr(image, "n_frames", 1)
        if frames > limits.max_frames:
            raise PictureError(
                f"Picture '{name}' has {frames:,} frames; the limit is {limits.max_frames:,}. "
                "Save its first frame as a picture."
            )
        box = image.tile[0][1] if image.tile else None
        image.load()
        if kind == "PNG":
            _scale_png_transparency(data, image)
        return _upright(_inside(box, flatten(image, name)), _orientation(image))


def decode_loaded(image: Image.Image, name: str, limits: PictureLimits) -> Image.Image:
    """Return an already opened `image` as a new upright 8-bit sRGB picture of mode "RGB"."""
    check_size(*image.size, name, limits)
    with _plain_errors(name):
        image.load()
        return _upright(flatten(image, name), _orientation(image))


def encode_png(image: Image.Image) -> bytes:
    """Return `image` as PNG without metadata, quickly rather than small."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _scale_png_transparency(data: bytes, image: Image.Image) -> None:
    """Bring a tRNS colour from the file's bit depth (in IHDR) to the decoded pixels' 8 bits."""
    depth, value = data[24], image.info.get("transparency")
    if image.mode == "RGB" and depth == 16 and isinstance(value, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in value)
    if image.mode == "L" and depth < 8 and isinstance(value, int):
        image.info["transparency"] = value * 255 // ((1 << depth) - 1)


def _inside(box: tuple[int, int, int, int] | None, image: Image.Image) -> Image.Image:
    """Return `image` white outside `box`: a first frame may cover only a part of its canvas."""
    if box is None or box == (0, 0, *image.size):
        return image
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image.crop(box), box[:2])
    return canvas


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata says nothing about the pixels
        logger.debug("A picture's EXIF data cannot be read; it is taken as upright.")
        return None


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


# --- colour ---------------------------------------------------------------------------------------


def flatten(image: Image.Image, name: str) -> Image.Image:
    """Return a new 8-bit sRGB picture: profile applied, transparency on white, no metadata."""
    colour, alpha = _split_alpha(image, name)
    rgb = _to_srgb(colour, image.info.get("icc_profile"))
    if alpha is not None:
        canvas = Image.new("RGB", rgb.size, "white")
        canvas.paste(rgb, mask=alpha)
        return canvas
    rgb = rgb.copy() if rgb is image else rgb
    rgb.info = {}
    return rgb


def _split_alpha(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours in mode "L", "RGB", "CMYK" or the like, and the alpha channel if any."""
    if image.mode == "F":
        raise PictureError(
            f"Picture '{name}' holds floating-point numbers, whose range is unknown. "
            "Scale it to 0..255 and convert it to 8 bits first."
        )
    if image.mode == "I" or image.mode.startswith("I;"):
        return _from_16_bits(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") or not image.has_transparency_data:
        return image, None
    rgba = image.convert("RGBA")
    is_gray = image.mode in ("1", "L", "LA")
    return rgba.getchannel("R") if is_gray else rgba.convert("RGB"), rgba.getchannel("A")


def _from_16_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return gray levels 0..65535 as 0..255; mode "I" is Pillow's older home of 16-bit files."""
    levels = np.asarray(image)
    if image.mode == "I":
        levels = levels.clip(0, 65535)
    eight_bits = ((levels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return Image.fromarray(eight_bits), None
    return Image.fromarray(eight_bits), Image.fromarray(
        np.where(levels == clear, 0, 255).astype(np.uint8)
    )


_PROFILE_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}


def _to_srgb(colour: Image.Image, profile: object) -> Image.Image:
    """Return `colour` as sRGB through its ICC profile, or by the plain rule where that fails."""
    if colour.mode == "LAB":
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return _through_profile(colour, source)
    if colour.mode in ("1", "P", "RGBX"):
        colour = colour.convert("L" if colour.mode == "1" else "RGB")
    if isinstance(profile, bytes) and profile and colour.mode in _PROFILE_SPACES:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == _PROFILE_SPACES[colour.mode]:
                return _through_profile(colour, source)
            _log_once("An ICC profile is for other colours than its picture has; it is left out.")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            _log_once("An ICC profile is damaged; it is left out.")
    return colour if colour.mode == "RGB" else colour.convert("RGB")


def _through_profile(colour: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    transform = ImageCms.ImageCmsTransform(source, srgb, colour.mode, "RGB")
    if colour.mode == "RGB":  # most profiles are sRGB: 729 colours tell, and spare all the others
        levels = np.linspace(0, 255, 9).astype(np.uint8)
        probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
        shown = np.asarray(transform.apply(Image.fromarray(probe)))
        if np.abs(shown.astype(int) - probe).max() <= 1:
            return colour
    return transform.apply(colour)


@cache
def _log_once(message: str) -> None:
    logger.warning(message)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB" if size >= MIB else f"{size:,} bytes"
