"""Limits hold before anything is decoded: bytes, pixels, sides, frames, scans and comments."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemma3vl_app import picture_decoding
from gemma3vl_app.errors import PictureError
from gemma3vl_app.pictures import Picture, PictureLimits
from tests.picture_files import KINDS, bomb, encoded, photo, png_chunk, raw_png, solid


@pytest.mark.parametrize("kind", KINDS)
def test_a_pixel_bomb_is_refused_by_its_header(kind: str) -> None:
    with pytest.raises(PictureError, match=r"million pixels\); the limit is 50 million"):
        Picture.open(bomb(kind))


def test_pixel_bombs_take_neither_time_nor_memory(tmp_path: Path) -> None:
    for kind in KINDS:
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
    assert refused == len(KINDS)
    assert megabytes < 20
    assert seconds < 1


def test_a_webp_s_canvas_is_checked_before_its_plugin_could_allocate_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[object] = []
    monkeypatch.setitem(picture_decoding._OPENERS, "WEBP", opened.append)
    with pytest.raises(PictureError, match="million pixels"):
        Picture.open(bomb("WEBP"))
    assert not opened


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


def test_too_many_frames_are_refused() -> None:
    frames = [solid("RGB", (n, 0, 0)) for n in range(4)]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(PictureError, match=r"'a\.png' has 4 frames; the limit is 3"):
        Picture.open(data, name="a.png", limits=PictureLimits(max_frames=3))


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


def metadata_bomb(kind: str, unpacked_bytes: int = 300_000_000) -> bytes:
    """A small picture whose metadata, where somebody unpacked it, would be hundreds of MB."""
    body = zlib.compress(bytes(unpacked_bytes), 9)
    chunk = {
        "iCCP": b"profile\0\0" + body,
        "zTXt": b"Comment\0\0" + body,
        "iTXt": b"Comment\0\1\0\0\0" + body,
    }[kind]
    data = encoded(photo())
    header_end = 8 + 25
    return data[:header_end] + png_chunk(kind.encode(), chunk) + data[header_end:]


@pytest.mark.parametrize("kind", ["iCCP", "zTXt", "iTXt"])
def test_packed_metadata_is_not_unpacked_into_memory(kind: str) -> None:
    data = metadata_bomb(kind)
    assert len(data) < 1_000_000
    tracemalloc.start()
    with suppress(PictureError):  # refused, or shown without it
        assert Picture.open(data).rgb.tobytes() == photo().tobytes()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 50_000_000


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_of_many_megabytes_is_refused_or_left_aside() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff\xff" + bytes(range(256)) * 80_000
    data = encoded(photo())
    data = data[:33] + png_chunk(b"eXIf", exif[6:]) + data[33:]
    start = time.process_time()
    with suppress(PictureError):
        assert Picture.open(data).rgb.tobytes() == photo().tobytes()
    assert time.process_time() - start < 2


def test_no_frame_after_the_first_of_a_camera_s_jpeg_is_looked_at() -> None:
    """Pillow checks no size when it goes to the second frame of an MPO (CVE-2026-96636)."""
    whole = encoded(photo(), "MPO", save_all=True, append_images=[photo(), photo()])
    data = bytearray(whole)
    second = data.index(b"\xff\xd8\xff", 4)
    size = data.index(b"\xff\xc0", second) + 5
    data[size : size + 4] = b"\xff\xff\xff\xff"  # 65,535 x 65,535
    picture = Picture.open(bytes(data))
    assert picture.rgb.size == photo().size
    assert picture == Picture.open(whole)


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PictureLimits(max_side=0)
    with pytest.raises(ValueError, match="89,478,485"):
        PictureLimits(max_pixels=10**9)
