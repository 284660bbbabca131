"""Pictures that others made to break decoders: the ones Pillow is tested with, from its sources."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import PIL
import pytest

_IMAGES = "/Tests/images/"
_DOWNLOAD_SEC = 900  # pip prepares a source distribution that it downloads


def pillow_sources(folder: Path) -> Path:
    """Return the source distribution of the installed Pillow; downloads it into `folder` once."""
    file = folder / f"pillow-{PIL.__version__}.tar.gz"
    if not file.exists():
        what = ("--no-binary", ":all:", "--no-deps", "--dest", str(folder))
        command = [sys.executable, "-m", "pip", "download", "--quiet", *what]
        try:
            subprocess.run(
                [*command, f"pillow=={PIL.__version__}"],
                check=True,
                capture_output=True,
                timeout=_DOWNLOAD_SEC,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            pytest.skip(f"Pillow {PIL.__version__}'s sources cannot be had from the package index")
    return file


def foreign(sources: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file among Pillow's test images, of whatever format, with its name."""
    with tarfile.open(sources) as archive:
        for member in archive:
            if _IMAGES in member.name and (file := archive.extractfile(member)) is not None:
                yield member.name.partition(_IMAGES)[2], file.read()
