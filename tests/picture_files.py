"""Small pictures, their files of every kind, hostile ones too, and colour profiles."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 24, height: int = 16) -> Image.Image:
    """A small picture without symmetry, smooth enough for JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def pdf(*colours: str, size: tuple[int, int] = (144, 72)) -> bytes:
    """A PDF of one page for each colour."""
    pages = [Image.new("RGB", size, colour) for colour in colours]
    return encoded(pages[0], "PDF", save_all=True, append_images=pages[1:], resolution=72)


def solid(mode: str, colour: Any, **info: Any) -> Image.Image:
    image = Image.new(mode, (8, 8), colour)
    image.info.update(info)
    return image


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(header: tuple[int, int, int, int], rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written byte by byte; `header` is width, height, bit depth and colour type."""
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)),
            *(png_chunk(kind, body) for kind, body in chunks),
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        )
    )


def bomb(kind: str) -> bytes:
    """A small file whose header states a picture of hundreds of millions of pixels."""
    data = bytearray(encoded(photo(), kind))
    if kind == "PNG":
        return raw_png((20_000, 20_000, 8, 2), b"\0" * 100)
    if kind == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", 20_000, 20_000)
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", 20_000, 20_000)
    if kind == "BMP":
        data[18:26] = struct.pack("<ii", 20_000, 20_000)
    if kind == "WEBP":
        side = (16_000 - 1).to_bytes(3, "little")
        canvas = b"VP8X" + struct.pack("<II", 10, 0) + side + side
        data[12:12] = canvas
        data[4:8] = struct.pack("<I", len(data) - 8)
    return bytes(data)


# --- colour profiles ---


def icc_profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC version 4 display profile (ICC.1:2022, section 7)."""
    table, body = struct.pack(">I", len(tags)), b""
    for kind, value in tags.items():
        offset = 128 + 4 + 12 * len(tags) + len(body)
        table += kind + struct.pack(">II", offset, len(value))
        body += value + b"\0" * (-len(value) % 4)
    white = struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    header = struct.pack(">II", 128 + len(table + body), 0) + b"\x04\x00\x00\x00mntr" + space
    header += b"XYZ " + b"\0" * 12 + b"acsp" + b"\0" * 28 + white
    return header.ljust(128, b"\0") + table + body


def xyz_tag(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))


def gamma_tag(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


# Primaries adapted to D50, columns X, Y, Z (from the published chromaticities, Bradford).
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
DISPLAY_P3 = (
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
)
GAMMA = 563 / 256  # what AdobeRGB states


def matrix_profile(primaries: tuple[tuple[float, float, float], ...]) -> bytes:
    tags = {b"wtpt": xyz_tag(0.9642, 1.0, 0.8249)}
    for letter, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags |= {letter + b"XYZ": xyz_tag(*primary), letter + b"TRC": gamma_tag(GAMMA)}
    return icc_profile(b"RGB ", tags)


# --- a file of every sort ---


def every_sort() -> dict[str, bytes]:
    """One file of each sort that decoding treats in a way of its own, refused ones too, by name."""
    return _by_mode() | _turned() | _coloured() | _raw() | _animated() | _refused()


def _by_mode() -> dict[str, bytes]:
    found = {f"RGB {kind}": encoded(photo(37, 21), kind) for kind in KINDS}
    for mode in ("1", "L", "LA", "P", "RGBA"):
        image = photo(37, 21).convert(mode)
        if mode in ("LA", "RGBA"):
            image.putalpha(photo(37, 21).getchannel("G"))
        found[f"{mode} PNG"] = encoded(image)
    alpha = photo(37, 21).convert("RGBA")
    alpha.putalpha(photo(37, 21).getchannel("B"))
    found["RGBA WEBP"] = encoded(alpha, "WEBP", lossless=True)
    found["CMYK JPEG"] = encoded(photo().convert("CMYK"), "JPEG")
    found["L JPEG"] = encoded(photo().convert("L"), "JPEG")
    found["progressive JPEG"] = encoded(photo(200, 100), "JPEG", progressive=True)
    levels = np.linspace(0, 65535, 12 * 8).astype("<u2").reshape(8, 12)
    found["I;16 PNG"] = encoded(Image.fromarray(levels))
    return found


def _turned() -> dict[str, bytes]:
    found = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("PNG", "JPEG", "WEBP"):
            found[f"turned {orientation} {kind}"] = encoded(photo(), kind, exif=exif)
    return found


def _coloured() -> dict[str, bytes]:
    profiles = {
        "adobe": matrix_profile(ADOBE_RGB),
        "p3": matrix_profile(DISPLAY_P3),
        "damaged": b"not a profile",
    }
    return {
        f"{name} {kind}": encoded(photo(), kind, icc_profile=profile)
        for name, profile in profiles.items()
        for kind in ("PNG", "JPEG", "WEBP")
    }


def _raw() -> dict[str, bytes]:
    clear = b"\x12\x34\x56\x78\x9a\xbc"
    palette = ((b"PLTE", b"\xff\0\0\0\xff\0"), (b"tRNS", bytes([255, 128])))
    return {
        "RGB 16 bits, clear": raw_png((1, 1, 16, 2), b"\0" + clear, (b"tRNS", clear)),
        "gray 4 bits, clear": raw_png((1, 1, 4, 0), b"\0\x50", (b"tRNS", b"\0\5")),
        "palette, half clear": raw_png((1, 1, 8, 3), b"\0\1", *palette),
    }


def _animated() -> dict[str, bytes]:
    frames = [solid("RGB", colour) for colour in ((255, 0, 0), (0, 255, 0))]
    found = {
        f"animated {kind}": encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        for kind in ("GIF", "PNG", "WEBP", "MPO")
    }
    part = bytearray(found["animated GIF"])
    part[6:10] = struct.pack("<HH", 12, 8)
    return found | {"GIF frame in a larger canvas": bytes(part)}


def _refused() -> dict[str, bytes]:
    found = {f"bomb {kind}": bomb(kind) for kind in KINDS}
    found |= {f"cut {kind}": encoded(photo(200, 150), kind)[:300] for kind in KINDS}
    return found | {"empty": b"", "no picture": b"hello", "a PDF": b"%PDF-1.7\n"}
