"""The pages of a PDF as pictures: named, within limits, from damaged files and many threads."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gemma3vl_app.errors import PictureError
from gemma3vl_app.pictures import Picture, PictureLimits
from tests.picture_files import encoded, pdf, photo


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
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(12):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            Picture.pages(bytes(data), limits=PictureLimits(max_pixels=10_000))
        except PictureError:
            refused += 1
    assert refused


def test_threads_render_pdfs_at_once() -> None:
    document = pdf("red", "lime")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: Picture.pages(document), range(12)))
    assert len(set(results)) == 1
