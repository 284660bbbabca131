"""What a worker process costs, for docs/security.md: `python -m tests.stress.worker_cost`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from PIL import Image

from gemma3vl_app import picture_decoding
from gemma3vl_app.picture_workers import PictureWorkers
from gemma3vl_app.pictures import DEFAULT_LIMITS, PictureLimits
from tests.picture_files import ADOBE_RGB, encoded, matrix_profile, photo

SIZES = ((896, 896), (4000, 3000), (8000, 6000))
TIMES = 7


def main() -> None:
    """Print the table of times, the first picture's wait, and bytes per pixel at most."""
    workers = PictureWorkers(processes=1)
    try:
        began = time.perf_counter()
        small = encoded(photo(), "JPEG")
        workers.decode(small, "first", DEFAULT_LIMITS)
        print(f"The first picture waits {time.perf_counter() - began:.1f} s for its process.\n")
        print("| JPEG | in the program | in a worker |\n|---|---|---|")
        for size in SIZES:
            data = encoded(photo(*size), "JPEG")
            here, there = best_ms(picture_decoding.decode, data), best_ms(workers.decode, data)
            print(f"| {size[0]} x {size[1]} | {here:.0f} ms | {there:.0f} ms |")
    finally:
        workers.close()
    print(f"\nMost memory of a worker: {bytes_per_pixel():.0f} bytes per pixel.")


def best_ms(decode: Callable[[bytes, str, PictureLimits], Image.Image], data: bytes) -> float:
    """Return the least of several times that decoding takes, in milliseconds."""
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        decode(data, "a picture", DEFAULT_LIMITS)
        times.append(time.perf_counter() - began)
    return 1000 * min(times)


def bytes_per_pixel() -> float:
    """Return what a worker's memory grows by at most, for the costliest kind of picture known.

    That is a lossless WebP with transparency, orientation and colour profile. Linux only.
    """
    image = photo(4000, 3000).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = matrix_profile(ADOBE_RGB)
    data = encoded(image, "WEBP", lossless=True, quality=0, exif=exif, icc_profile=profile)
    workers = PictureWorkers(processes=1)
    try:
        workers.decode(encoded(photo(), "WEBP"), "first", DEFAULT_LIMITS)
        before = _peak_bytes()
        workers.decode(data, "large", DEFAULT_LIMITS)
        return (_peak_bytes() - before) / (image.width * image.height)
    finally:
        workers.close()


def _peak_bytes() -> int:
    """Return the most memory that this program's one worker has had."""
    (worker,) = psutil.Process().children(recursive=True)
    status = Path(f"/proc/{worker.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


if __name__ == "__main__":
    main()
