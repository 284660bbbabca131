"""What is damaged or no picture is refused, by a `PictureError` that people can act on."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gemma3vl_app.errors import PictureError
from gemma3vl_app.pictures import Picture
from tests.picture_files import ADOBE_RGB, KINDS, bomb, encoded, matrix_profile, photo


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


def test_a_float_picture_is_refused_with_what_to_do() -> None:
    with pytest.raises(PictureError, match="convert it to 8 bits"):
        Picture.open(Image.new("F", (4, 4), 0.5))


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
