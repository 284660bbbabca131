"""Pictures leave as pixels under safe names."""

import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gemma3vl_app.export import pictures as export_pictures
from gemma3vl_app.export.pictures import (
    SHOWN_SIDE,
    PictureFiles,
    encode_exact,
    encode_shown,
    safe_stem,
)
from gemma3vl_app.pictures import Picture
from gemma3vl_app.transcript import ROOT, Transcript, Turn
from tests.export.chats import BLUE, RED, photo, png, user


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("encode", [encode_shown, encode_exact])
def test_no_metadata_leaves(encode):
    original = photo()
    assert all(b"Secret" + what in original.data for what in (b"Camera", b"Comment"))
    data = encode(original).data
    assert b"Secret" not in data and b"Exif" not in data
    assert not opened(data).getexif()


def test_a_profile_and_texts_of_a_png_do_not_leave():
    file = io.BytesIO()
    from PIL import ImageCms, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "SecretAuthor")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (9, 9), "red").save(file, "PNG", pnginfo=info, icc_profile=profile)
    picture = Picture.open(file.getvalue(), name="x.png")
    for encode in (encode_shown, encode_exact):
        assert opened(encode(picture).data).info == {}


def test_photos_are_shown_as_jpeg_and_drawings_as_png():
    assert encode_shown(photo()).format == "jpeg"
    assert encode_shown(RED).format == "png"


def test_large_pictures_are_shown_smaller():
    shown = encode_shown(png("red", size=(2 * SHOWN_SIDE, 800)))
    assert (shown.width, shown.height) == opened(shown.data).size == (SHOWN_SIDE, 400)


def test_models_get_the_very_pixels():
    picture = photo((2 * SHOWN_SIDE, 10))
    again = Picture.open(encode_exact(picture).data)
    assert again.sha256 == picture.sha256
    assert np.array_equal(np.asarray(again.rgb), np.asarray(picture.rgb))


def test_pixels_that_would_be_too_large_a_file_become_a_jpeg(monkeypatch):
    limits = export_pictures.DEFAULT_LIMITS
    small = type(limits)(max_bytes=4000)
    monkeypatch.setattr(export_pictures, "DEFAULT_LIMITS", small)
    assert encode_exact(photo((100, 100))).format == "jpeg"
    assert encode_exact(RED).format == "png"


@given(st.text(st.characters(), max_size=60))
def test_any_name_becomes_a_safe_one(name):
    stem = safe_stem(name)
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,39}", stem)
    assert not stem.endswith(".")


def test_names_tell_pictures_apart_and_are_the_same_in_every_export():
    twin = png("green", "red.png")
    chat = Transcript((Turn(user(RED, BLUE), ROOT), Turn(user(twin, RED), 0)), head=1)
    files = PictureFiles(chat, "a b-pictures", exact=True)
    assert files.path(twin) == "a b-pictures/03-red.png"
    assert files.path(RED.with_crops("on")) == files.path(RED) == "a b-pictures/01-red.png"
    assert files.link(BLUE) == "a%20b-pictures/02-blue.png"
    assert set(files.files) == {"01-red.png", "02-blue.png", "03-red.png"}


def test_a_smaller_copy_has_a_name_of_its_own():
    large = png("red", size=(2 * SHOWN_SIDE, 10))
    chat = Transcript((Turn(user(large), ROOT),), head=0)
    assert PictureFiles(chat, "p", exact=False).path(large) == "p/01-red-small.png"
    assert PictureFiles(chat, "p", exact=True).path(large) == "p/01-red.png"
