"""The pages of a PDF as pictures, drawn within limits.

Knows PDFs and their limits. Does not know what a picture is used for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import pypdfium2 as pdfium
from PIL import Image
from pypdfium2 import raw as pdfium_c

from gemma3vl_app.errors import PictureError
from gemma3vl_app.picture_decoding import PictureLimits, check_bytes

_DPI = 150  # small print stays readable, a letter page has about two million pixels
_PAGE_PIXELS = 8_000_000  # a poster is rendered at a lower resolution instead

_lock = threading.Lock()  # PDFium must never be entered by two threads at once


def render_pages(data: bytes, name: str, limits: PictureLimits) -> Iterator[Image.Image]:
    """Yield each page of a PDF in mode "RGB", within `_DPI`, `_PAGE_PIXELS` and the limits.

    Raises `PictureError` for encrypted or damaged files and for more pages than the limit.
    """
    check_bytes(len(data), name, limits)
    document = _open_pdf(data, name)
    try:
        with _lock:
            pages = len(document)
        if not 1 <= pages <= limits.max_pdf_pages:
            raise PictureError(
                f"PDF '{name}' has {pages:,} pages; the limit is {limits.max_pdf_pages}. "
                "Save the pages you need as a PDF of their own."
            )
        for index in range(pages):
            yield _render_page(document, index, name, limits)
    finally:
        with _lock:
            document.close()


def _open_pdf(data: bytes, name: str) -> pdfium.PdfDocument:
    if b"%PDF-" not in data[: 1 << 10]:  # readers accept that much before it
        raise PictureError(f"'{name}' is not a PDF. Save it as one, or open it as a picture.")
    with _lock:
        try:
            document = pdfium.PdfDocument(data)
        except pdfium.PdfiumError as error:
            if error.err_code == pdfium_c.FPDF_ERR_PASSWORD:
                raise PictureError(
                    f"PDF '{name}' is protected by a password. Save it without one and try again."
                ) from error
            raise PictureError(
                f"PDF '{name}' is damaged and cannot be opened. Save it again."
            ) from error
        document.init_forms()  # what was filled in is part of what a person sees
        return document


def _render_page(
    document: pdfium.PdfDocument, index: int, name: str, limits: PictureLimits
) -> Image.Image:
    try:
        with _lock:
            page = document[index]
            try:
                width, height = page.get_size()
                bitmap = page.render(scale=_page_scale(width, height, limits))
                try:
                    drawn: Image.Image = bitmap.to_pil()
                    return drawn.convert("RGB").copy()  # the bitmap's memory goes away
                finally:
                    bitmap.close()
            finally:
                page.close()
    except (pdfium.PdfiumError, ValueError, ArithmeticError, MemoryError, TypeError) as error:
        raise PictureError(
            f"Page {index + 1} of PDF '{name}' is damaged or too large to draw. Save the PDF again."
        ) from error


def _page_scale(width: float, height: float, limits: PictureLimits) -> float:
    """Return pixels per point (1/72 inch): `_DPI`, or less where a limit asks for it."""
    if not (width > 0 and height > 0 and math.isfinite(width * height)):
        raise ValueError("A page without an area.")
    # The renderer rounds sides up: (width * scale + 1) * (height * scale + 1) = pixels.
    area, border = width * height, width + height
    pixels = min(_PAGE_PIXELS, limits.max_pixels)
    by_pixels = (math.sqrt(border**2 + 4 * area * (pixels - 1)) - border) / (2 * area)
    by_side = (limits.max_side - 1) / max(width, height)
    return min(_DPI / 72, by_pixels, by_side)
