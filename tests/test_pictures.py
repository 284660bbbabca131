"""Right pixels for every kind of file, limits before decoding, errors people can act on."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from gemma3vl_app import picture_decoding, pictures
from gemma3vl_app.errors import PictureError
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture, PictureLimits, clean_name

Pixel = tuple[int, int, int]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 24, height: int = 16) -> Image.Image:
    """A small picture without symmetry, smooth enough for JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def first_pixel(source: Any) -> Pixel:
    pixel = Picture.open(source).rgb.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel  # type: ignore[return-value]


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


# --- orientation, alpha, depth --------------------------------------------------------------------


TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_a_turned_photo_is_made_upright(orientation: int) -> None:
    image = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = TURNED[orientation](np.asarray(image))
    picture = Picture.open(encoded(image, exif=exif))
    assert np.array_equal(np.asarray(picture.rgb), expected)
    assert (picture.height, picture.width) == expected.shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_picture_as_it_is() -> None:
    picture = Picture.open(encoded(photo(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert picture == Picture.open(photo())


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (solid("RGBA", (255, 0, 0, 0)), (255, 255, 255)),
        (solid("RGBA", (255, 0, 0, 128)), (255, 127, 127)),
        (solid("LA", (0, 64)), (191, 191, 191)),
        (solid("PA", (0, 0)), (255, 255, 255)),
        (solid("RGB", (9, 8, 7), transparency=(9, 8, 7)), (255, 255, 255)),
        (solid("L", 9, transparency=9), (255, 255, 255)),
        (solid("1", 0, transparency=0), (255, 255, 255)),
        (solid("1", 255), (255, 255, 255)),
        (solid("L", 9), (9, 9, 9)),
        (solid("RGBa", (64, 0, 0, 128)), (191, 127, 127)),
        (solid("I;16", 32768), (128, 128, 128)),
        (solid("I;16B", 32768), (128, 128, 128)),
        (solid("I", 32768), (128, 128, 128)),
        (solid("I;16", 500, transparency=500), (255, 255, 255)),
        (solid("CMYK", (255, 0, 0, 0)), (0, 255, 255)),
        (solid("YCbCr", (128, 128, 128)), (128, 128, 128)),
        (solid("LAB", (255, 128, 128)), (255, 255, 255)),
        (solid("HSV", (0, 255, 255)), (255, 0, 0)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_is_shown_on_white(image: Image.Image, expected: Pixel) -> None:
    assert np.allclose(first_pixel(image), expected, atol=2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "1", "L"])
def test_a_mode_gives_the_same_pixels_from_a_file_as_from_pil(mode: str) -> None:
    image = photo().convert("L").convert("I").point(lambda v: v * 257).convert("I;16")
    image = image if mode == "I;16" else photo().convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(photo().getchannel("G"))
    assert Picture.open(encoded(image)) == Picture.open(image)


def test_a_16_bit_gradient_is_scaled_and_not_clipped() -> None:
    levels = np.linspace(0, 65535, 256).astype("<u2").reshape(1, 256)
    shown = np.asarray(Picture.open(encoded(Image.fromarray(levels))).rgb)[0, :, 0].astype(int)
    assert abs(shown - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("header", "row", "clear"),
    [
        ((1, 1, 16, 2), b"\x12\x34\x56\x78\x9a\xbc", b"\x12\x34\x56\x78\x9a\xbc"),
        ((1, 1, 4, 0), b"\x50", b"\x00\x05"),
        ((1, 1, 2, 0), b"\x80", b"\x00\x02"),
        ((1, 1, 1, 0), b"\x00", b"\x00\x00"),
        ((1, 1, 16, 0), b"\x12\x34", b"\x12\x34"),
    ],
    ids=["rgb16", "gray4", "gray2", "gray1", "gray16"],
)
def test_a_transparent_colour_is_found_at_every_bit_depth(
    header: tuple[int, int, int, int], row: bytes, clear: bytes
) -> None:
    assert first_pixel(raw_png(header, b"\0" + row, (b"tRNS", clear))) == (255, 255, 255)
    assert first_pixel(raw_png(header, b"\0" + row)) != (255, 255, 255)


@pytest.mark.parametrize(("alpha", "expected"), [(0, 255), (128, 127)])
def test_a_palette_with_transparency_is_put_on_white(alpha: int, expected: int) -> None:
    chunks = ((b"PLTE", b"\xff\0\0\0\xff\0"), (b"tRNS", bytes([255, alpha])))
    pixel = first_pixel(raw_png((1, 1, 8, 3), b"\0\1", *chunks))
    assert np.allclose(pixel, (expected, 255, expected), atol=1)


def test_a_float_picture_is_refused_with_what_to_do() -> None:
    with pytest.raises(PictureError, match="convert it to 8 bits"):
        Picture.open(Image.new("F", (4, 4), 0.5))


# --- colour profiles ------------------------------------------------------------------------------


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
XYZ_D50_TO_SRGB = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)


def matrix_profile(primaries: tuple[tuple[float, float, float], ...]) -> bytes:
    tags = {b"wtpt": xyz_tag(0.9642, 1.0, 0.8249)}
    for letter, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags |= {letter + b"XYZ": xyz_tag(*primary), letter + b"TRC": gamma_tag(GAMMA)}
    return icc_profile(b"RGB ", tags)


def srgb_levels(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(curved * 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("colour", [(200, 120, 60), (60, 160, 90), (255, 255, 255), (0, 255, 0)])
@pytest.mark.parametrize("primaries", [ADOBE_RGB, DISPLAY_P3], ids=["adobe", "p3"])
def test_a_wide_gamut_picture_shows_its_colours_in_srgb(
    primaries: tuple[tuple[float, float, float], ...], colour: Pixel, kind: str
) -> None:
    lossless = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    data = encoded(solid("RGB", colour), kind, icc_profile=matrix_profile(primaries), **lossless)
    linear = (np.array(colour) / 255) ** GAMMA
    expected = srgb_levels(XYZ_D50_TO_SRGB @ (np.array(primaries).T @ linear))
    assert np.abs(np.array(first_pixel(data)) - expected).max() <= 2


def test_a_gray_picture_with_a_gray_profile_is_converted_by_its_curve() -> None:
    tags = {b"wtpt": xyz_tag(0.9642, 1.0, 0.8249), b"kTRC": gamma_tag(1.0)}
    data = encoded(solid("L", 128), icc_profile=icc_profile(b"GRAY", tags))
    expected = srgb_levels(np.array([128 / 255] * 3))
    assert np.abs(np.array(first_pixel(data)) - expected).max() <= 2


def test_transparency_survives_a_profile() -> None:
    image = solid("RGBA", (0, 0, 0, 128))
    assert np.allclose(
        first_pixel(encoded(image, icc_profile=matrix_profile(ADOBE_RGB))), 127, atol=1
    )


def test_an_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert Picture.open(encoded(photo(), icc_profile=profile)) == Picture.open(photo())


@pytest.mark.parametrize(
    "profile",
    [
        b"not a profile",
        matrix_profile(ADOBE_RGB)[:200],
        icc_profile(b"CMYK", {}),
        icc_profile(b"GRAY", {b"kTRC": gamma_tag(1.0)}),
        icc_profile(b"RGB ", {}),
    ],
    ids=["text", "cut", "cmyk", "gray", "no tags"],
)
def test_a_corrupt_or_wrong_profile_is_left_out(profile: bytes) -> None:
    assert Picture.open(encoded(photo(), icc_profile=profile)) == Picture.open(photo())


def test_a_corrupt_profile_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    picture_decoding._log_once.cache_clear()
    for colour in (1, 2, 3):
        Picture.open(encoded(solid("L", colour), icc_profile=b"nonsense"))
    assert len([r for r in caplog.records if "profile is damaged" in r.message]) == 1


def test_a_cmyk_jpeg_is_not_shown_inverted() -> None:
    data = encoded(solid("CMYK", (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.allclose(first_pixel(data), (255, 0, 0), atol=3)


def test_a_ycck_jpeg_is_not_shown_inverted() -> None:
    # Adobe stores ink inverted: Y = 200 becomes ink 255 - 55 = 200 of C, M and Y, and no black.
    data = encoded(solid("CMYK", (55, 127, 127, 0)), "JPEG", quality=100, subsampling=0)
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0
    data = data[: adobe + 11] + b"\x02" + data[adobe + 12 :]
    assert np.allclose(first_pixel(data), (55, 55, 55), atol=3)


def test_metadata_is_dropped_from_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    rgb = Picture.open(encoded(photo(), "JPEG", exif=exif, comment="secret")).rgb
    assert not rgb.info and not rgb.getexif()
    assert b"secret" not in encoded(rgb)
    from_pil = Picture.open(Image.open(io.BytesIO(encoded(photo(), exif=exif))))
    assert b"secret" not in from_pil.data


# --- animations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "MPO"])
def test_the_first_frame_of_an_animation_is_shown(kind: str) -> None:
    frames = [solid("RGB", colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert np.allclose(first_pixel(data), (255, 0, 0), atol=3)


def test_a_gif_frame_smaller_than_its_canvas_lies_on_white() -> None:
    data = bytearray(encoded(solid("RGB", (255, 0, 0)), "GIF"))
    data[6:10] = struct.pack("<HH", 12, 8)
    rgb = Picture.open(bytes(data)).rgb
    assert rgb.size == (12, 8)
    assert rgb.getpixel((0, 0)) == (255, 0, 0)
    assert rgb.getpixel((11, 7)) == (255, 255, 255)


def test_too_many_frames_are_refused() -> None:
    frames = [solid("RGB", (n, 0, 0)) for n in range(4)]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(PictureError, match=r"'a\.png' has 4 frames; the limit is 3"):
        Picture.open(data, name="a.png", limits=PictureLimits(max_frames=3))


# --- limits ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_a_pixel_bomb_is_refused_by_its_header(kind: str) -> None:
    with pytest.raises(PictureError, match=r"million pixels\); the limit is 50 million"):
        Picture.open(bomb(kind))


def test_pixel_bombs_take_neither_time_nor_memory(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        (tmp_path / kind).write_bytes(bomb(kind))
    script = """
import resource, sys, time, pathlib
from gemma3vl_app.pictures import Picture, PictureError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start, refused = peak(), time.perf_counter(), 0
for path in pathlib.Path(sys.argv[1]).iterdir():
    try:
        Picture.open(path)
    except PictureError:
        refused += 1
print(refused, (peak() - before) // 1024, time.perf_counter() - start)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    refused, megabytes, seconds = map(float, done.stdout.split())
    assert refused == 5
    assert megabytes < 20
    assert seconds < 1


@pytest.mark.filterwarnings("error")
def test_a_large_header_warns_nowhere_and_changes_no_global() -> None:
    before = Image.MAX_IMAGE_PIXELS
    data = raw_png((10_000, 10_000, 8, 2), b"\0")  # where Pillow itself would warn
    with pytest.raises(PictureError, match="10000 x 10000"):
        Picture.open(data)
    assert before == Image.MAX_IMAGE_PIXELS == 89_478_485


def test_a_side_beyond_the_limit_is_refused() -> None:
    with pytest.raises(PictureError, match=r"1 x 40000; the limit for a side is 32,768 pixels"):
        Picture.open(raw_png((1, 40_000, 8, 0), b"\0"))


def test_a_file_beyond_the_byte_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(2**40)  # a sparse terabyte
    with pytest.raises(PictureError, match=r"'huge\.png' has .* MiB; the limit is 25\.0 MiB"):
        Picture.open(path)


def test_bytes_beyond_the_limit_are_refused() -> None:
    with pytest.raises(PictureError, match="the limit is 10 bytes"):
        Picture.open(encoded(photo()), limits=PictureLimits(max_bytes=10))


def test_pixels_whose_png_could_not_be_reopened_are_refused() -> None:
    with pytest.raises(PictureError, match="as PNG; the limit is"):
        Picture.open(photo(), limits=PictureLimits(max_bytes=10))


def test_a_pil_or_numpy_picture_meets_the_pixel_limit() -> None:
    for source in (photo(), np.asarray(photo())):
        with pytest.raises(PictureError, match="the limit is"):
            Picture.open(source, limits=PictureLimits(max_pixels=100))


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    data = encoded(photo(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(PictureError, match="scans"):
        Picture.open(data[:-2] + scan * 100 + b"\xff\xd9")
    assert Picture.open(data)


def test_a_gif_with_endless_comments_is_refused() -> None:
    data = encoded(photo(), "GIF")
    frame = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    comment = b"!\xfe" + (b"\xff" + b"a" * 255) * 8_000 + b"\0"
    with pytest.raises(PictureError, match="comments"):
        Picture.open(data[:frame] + comment + data[frame:])
    assert Picture.open(data[:frame] + b"!\xfe\x01a\x00" + data[frame:]) == Picture.open(data)


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PictureLimits(max_side=0)
    with pytest.raises(ValueError, match="89,478,485"):
        PictureLimits(max_pixels=10**9)


# --- damage and refusals --------------------------------------------------------------------------


KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tenth", range(10))
def test_a_file_cut_anywhere_is_refused(kind: str, tenth: int) -> None:
    data = encoded(photo(200, 150), kind)
    with pytest.raises(PictureError, match=r"'cut\.img'"):
        Picture.open(data[: len(data) * tenth // 10], name="cut.img")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_hundred_damaged_files_raise_nothing_but_picture_error(kind: str) -> None:
    profile = matrix_profile(ADOBE_RGB) if kind in ("PNG", "JPEG", "WEBP") else None
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(photo(), kind, icc_profile=profile, exif=exif)
    chance = random.Random(kind)
    refused = 0
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            Picture.open(bytes(data))
        except PictureError as error:
            refused += 1
            assert "object at" not in str(error)
    assert kind == "BMP" or refused > 0


@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b""]), st.binary())
@settings(max_examples=150, deadline=None)
def test_arbitrary_bytes_raise_nothing_but_picture_error(start: bytes, rest: bytes) -> None:
    with pytest.raises(PictureError):
        Picture.open(start + rest)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"%PDF-1.7\n", r"a PDF.*open its pages"),
        (b"<?xml version='1.0'?><svg xmlns=''/>", "an SVG drawing.*export it as PNG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC photo.*save it as JPEG"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "an AVIF picture"),
        (encoded(photo(), "TIFF"), "a TIFF picture.*save it as PNG or JPEG"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"hello", "not a picture in a known format.*PNG, JPEG"),
    ],
)
def test_what_is_no_accepted_picture_is_named_with_advice(data: bytes, message: str) -> None:
    with pytest.raises(PictureError, match=message) as caught:
        Picture.open(data, name="x.bin")
    assert "'x.bin'" in str(caught.value)


@pytest.mark.parametrize("source", [None, 5, ["a.jpg"], object()])
def test_a_source_of_another_type_is_refused(source: Any) -> None:
    with pytest.raises(PictureError, match="Pass a path"):
        Picture.open(source)


@pytest.mark.parametrize("address", ["https://example.com/a.jpg", "data:image/png;base64,AAAA"])
def test_a_web_address_is_not_fetched(address: str) -> None:
    with pytest.raises(PictureError, match="not fetched"):
        Picture.open(address)


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((3, 8, 2), np.uint8), r"\(3, 8, 2\)"),
        (np.zeros((4, 4, 1), np.uint8), r"\(4, 4, 1\)"),
        (np.zeros((0, 4), np.uint8), r"\(0, 4\)"),
        (np.zeros((4, 4), bool), "bool"),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(array: Any, got: str) -> None:
    with pytest.raises(PictureError, match=got) as caught:
        Picture.open(array)
    assert "expected uint8 of shape (height, width)" in str(caught.value)


def test_a_missing_file_a_folder_a_pipe_and_a_device_are_plain_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "none.jpg", "was not found"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "a pipe or a device"),
        (Path("/dev/zero"), "a pipe or a device"),
        (f"{tmp_path}/a\0b", "cannot be read"),
    ):
        with pytest.raises(PictureError, match=message) as caught:
            Picture.open(path)
        assert str(tmp_path.parent) not in str(caught.value)


def test_no_error_shows_the_folder_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret folder" / "photo.png"
    path.parent.mkdir()
    for data in (b"", b"hello", encoded(photo())[:80], bomb("PNG"), b"%PDF-1.7"):
        path.write_bytes(data)
        with pytest.raises(PictureError, match=r"'photo\.png'") as caught:
            Picture.open(path)
        assert "secret folder" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/ann/a.jpg", "a.jpg"),
        ("C:\\Users\\ann\\a.jpg", "a.jpg"),
        ("a\n\x1b[31m\u202egpj.exe", "a [31m gpj.exe"),
        ("", "picture"),
        ("///", "picture"),
        ("a" * 300 + ".jpeg", "a" * 59 + "…" + "a" * 15 + ".jpeg"),
    ],
)
def test_names_are_made_fit_to_show(name: str, shown: str) -> None:
    assert clean_name(name) == shown
    assert Picture.open(photo(), name=name).name == shown


# --- the value ------------------------------------------------------------------------------------


def test_the_same_pixels_are_the_same_picture_from_any_source(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(photo()))
    sources = (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), photo())
    opened = [Picture.open(s) for s in (*sources, Image.open(path), np.asarray(photo()))]
    opened.append(Picture.open(encoded(photo(), "BMP")))
    assert len(set(opened)) == 1
    assert [p.name for p in opened[:3]] == ["photo.png", "photo.png", "picture"]
    assert opened[0].data == path.read_bytes()


def test_equality_follows_pixels_size_and_crops_and_not_names() -> None:
    picture = Picture.open(photo(), name="a")
    assert picture == Picture.open(photo(), name="b")
    assert picture != picture.with_crops("on")
    assert picture.with_crops("on") == Picture.open(photo(), crops="on")
    assert picture != Picture.open(photo().rotate(180))
    flat = np.zeros((4, 6), np.uint8)
    assert Picture.open(flat) != Picture.open(flat.reshape(6, 4))


def test_a_picture_cannot_be_changed_and_prints_without_its_bytes() -> None:
    picture = Picture.open(photo(), name="a.png")
    with pytest.raises(FrozenInstanceError):
        picture.name = "b"  # type: ignore[misc]
    assert "a.png" in repr(picture) and "PNG" not in repr(picture)


def test_opening_a_picture_keeps_its_crops_unless_others_are_given() -> None:
    picture = Picture.open(photo(), name="a.png")
    assert picture.crops == "auto"
    assert Picture.open(picture.with_crops("off")).crops == "off"
    assert Picture.open(picture, crops="on").crops == "on"
    assert Picture.open(picture, name="b.png").name == "b.png"


@pytest.mark.parametrize("crops", ["yes", ["on"], 1])
def test_an_unknown_value_of_crops_is_refused(crops: Any) -> None:
    with pytest.raises(PictureError, match="'off', 'on' or 'auto'"):
        Picture.open(photo(), crops=crops)


def test_a_conversation_with_pictures_survives_a_round_trip() -> None:
    picture = Picture.open(encoded(photo(), "JPEG"), name="a.jpg", crops="on")
    conversation = Conversation().user(picture, "What is this?")
    again = Conversation.from_dict(conversation.to_dict())
    assert again == conversation
    assert again.pictures[0].name == "a.jpg" and again.pictures[0].data == picture.data


def test_the_callers_image_is_not_changed() -> None:
    image = photo()
    image.info["icc_profile"] = b"nonsense"
    Picture.open(image)
    assert image.info == {"icc_profile": b"nonsense"}
    assert np.array_equal(np.asarray(image), np.asarray(photo()))


# --- decoded pictures -----------------------------------------------------------------------------


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> pictures._DecodedCache:
    cache = pictures._DecodedCache(max_bytes=3 * 24 * 16 * 4)
    monkeypatch.setattr(pictures, "_decoded", cache)
    return cache


def variants(count: int) -> list[Picture]:
    return [Picture.open(encoded(photo().point(lambda v, n=n: v ^ n))) for n in range(count)]


def test_an_evicted_picture_is_decoded_again_to_the_same_pixels(
    small_cache: pictures._DecodedCache,
) -> None:
    opened = variants(5)
    kept = [small_cache.get(p.sha256) is not None for p in opened]
    assert kept == [False, False, True, True, True]
    for n, picture in enumerate(opened):
        assert np.array_equal(np.asarray(picture.rgb), np.asarray(photo()) ^ n)


def test_a_picture_larger_than_the_cache_still_opens(small_cache: pictures._DecodedCache) -> None:
    picture = Picture.open(photo(200, 100), limits=PictureLimits(max_side=200))
    assert small_cache.get(picture.sha256) is None
    assert picture.rgb.size == (200, 100)


def test_drawing_on_the_pixels_changes_nobody_elses() -> None:
    picture = Picture.open(photo())
    picture.rgb.paste("red", (0, 0, 24, 16))
    assert np.array_equal(np.asarray(picture.rgb), np.asarray(photo()))


def test_threads_open_and_decode_pictures_at_once(small_cache: pictures._DecodedCache) -> None:
    files = [encoded(photo().point(lambda v, n=n: v ^ n)) for n in range(16)]

    def work(turn: int) -> bool:
        n = turn % 16
        shown = np.asarray(Picture.open(files[n]).rgb)
        return np.array_equal(shown, np.asarray(photo()) ^ n)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    assert small_cache._bytes <= small_cache.max_bytes


# --- PDF ------------------------------------------------------------------------------------------


def pdf(*colours: str, size: tuple[int, int] = (144, 72)) -> bytes:
    pages = [Image.new("RGB", size, colour) for colour in colours]
    return encoded(pages[0], "PDF", save_all=True, append_images=pages[1:], resolution=72)


def test_the_pages_of_a_pdf_become_named_pictures(tmp_path: Path) -> None:
    path = tmp_path / "scan.pdf"
    path.write_bytes(pdf("red", "lime", "blue"))
    pages = Picture.pages(path)
    assert [p.name for p in pages] == ["scan.pdf, page 1", "scan.pdf, page 2", "scan.pdf, page 3"]
    middles = [p.rgb.getpixel((p.width // 2, p.height // 2)) for p in pages]
    assert np.allclose(middles, [(255, 0, 0), (0, 255, 0), (0, 0, 255)], atol=3)
    assert all(abs(p.width - 300) <= 1 and abs(p.height - 150) <= 1 for p in pages)
    assert Picture.open(pages[0].data) == pages[0]


def test_a_poster_is_drawn_within_the_limits() -> None:
    (page,) = Picture.pages(pdf("red", size=(4000, 4000)))
    assert 7_000_000 < page.width * page.height <= 8_000_000
    (page,) = Picture.pages(pdf("red"), limits=PictureLimits(max_side=100, max_pixels=4000))
    assert page.width * page.height <= 4000 and page.width <= 100


def test_a_pdf_of_too_many_pages_is_refused() -> None:
    with pytest.raises(PictureError, match=r"'a\.pdf' has 3 pages; the limit is 2"):
        Picture.pages(
            pdf("red", "lime", "blue"), name="a.pdf", limits=PictureLimits(max_pdf_pages=2)
        )


ENCRYPTED = b"""%%PDF-1.4
1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj
2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj
3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 72 72]>> endobj
4 0 obj <</Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s>>> endobj
trailer <</Root 1 0 R /Encrypt 4 0 R /ID [<00112233> <00112233>] /Size 5>>
%%%%EOF
""" % (b"ab" * 32, b"cd" * 32)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ENCRYPTED, "protected by a password"),
        (b"%PDF-1.7\n" + b"x" * 500, "damaged"),
        (pdf("red")[:60], "damaged"),
        (encoded(photo()), "not a PDF"),
        (b"", "not a PDF"),
    ],
    ids=["encrypted", "garbage", "cut", "a picture", "empty"],
)
def test_an_encrypted_or_damaged_pdf_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(PictureError, match=message) as caught:
        Picture.pages(data, name="/tmp/x/doc.pdf")
    assert "'doc.pdf'" in str(caught.value)


def test_damaged_pdfs_raise_nothing_but_picture_error() -> None:
    whole, chance = pdf("red", "lime"), random.Random(1)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(12):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            Picture.pages(bytes(data), limits=PictureLimits(max_pixels=10_000))
        except PictureError:
            continue


def test_threads_render_pdfs_at_once() -> None:
    document = pdf("red", "lime")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: Picture.pages(document), range(12)))
    assert len(set(results)) == 1
