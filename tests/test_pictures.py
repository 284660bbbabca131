"""A picture as a value: equal pixels are equal pictures, named, hashed and kept decoded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gemma3vl_app import pictures
from gemma3vl_app.errors import PictureError
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture, PictureLimits, clean_name
from tests.picture_files import encoded, photo


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


# --- decoded pictures ---


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
