"""Right pixels for every kind of file: orientation, depth, transparency, colour, first frame."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from gemma3vl_app import picture_decoding
from gemma3vl_app.pictures import Picture
from tests.picture_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    GAMMA,
    encoded,
    gamma_tag,
    icc_profile,
    matrix_profile,
    photo,
    raw_png,
    solid,
    xyz_tag,
)

Pixel = tuple[int, int, int]


def first_pixel(source: Any) -> Pixel:
    pixel = Picture.open(source).rgb.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    red, green, blue = pixel  # one of mode RGB has three
    return red, green, blue


# --- orientation ---


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


# --- modes, depth and transparency ---


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


# --- colour ---


XYZ_D50_TO_SRGB = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)


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


# --- animations ---


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
