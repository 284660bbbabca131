"""C compiled at first use, where there is a compiler and a processor for it.

A library is kept in the cache by its text, compiler and options, which say for which processors it
is. Compiled by GCC it shares torch's OpenMP threads: a second pool would fight with them for the
cores.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TypeVar

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.cache import cache_root, cached_folder

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-fopenmp", "-shared", "-fPIC")
COMPILE_SEC = 60.0
FAILURES = (OSError, subprocess.SubprocessError, AttributeError, ValueError)  # of any of it

Kernels = TypeVar("Kernels")

logger = logging.getLogger(__name__)


def load_kernels(
    source_file: str, for_processor: tuple[str, ...] | None, wrap: Callable[[ctypes.CDLL], Kernels]
) -> Kernels | None:
    """Return what `wrap` makes of `source_file` compiled; None where torch has to stand in.

    `for_processor` are the compiler's options, None if this processor is none that the source is
    for. `wrap` checks what it returns, and raises `ValueError` for what computes wrongly.
    """
    compiler = find_compiler()
    if compiler is None or for_processor is None:
        logger.info("%s is not compiled here; torch stands in, slower.", source_file)
        return None
    try:
        return wrap(compile_library(source_file, compiler, for_processor))
    except (LoadError, *FAILURES) as error:
        logger.warning(
            "%s cannot be compiled and used here (%s); torch stands in, slower.",
            source_file,
            type(error).__name__,
        )
        return None


def find_compiler() -> str | None:
    """Return the C compiler's path; None where there is none, or the system is not known."""
    if sys.platform != "linux":
        return None
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def compile_library(source_file: str, compiler: str, for_processor: tuple[str, ...]) -> ctypes.CDLL:
    """Return `source_file` of this package compiled: from the cache, where it is safe there.

    Safe is what only this user can have put there. Raises one of `FAILURES`, or `LoadError`.
    """
    source = resources.files("gemma3vl_app.loading").joinpath(source_file).read_text("utf-8")
    flags = (*FLAGS, *for_processor)
    settings = "\n".join((source, compiler, *flags, platform.machine()))
    key = hashlib.sha256(settings.encode()).hexdigest()[:12]
    name = Path(source_file).stem

    def build(folder: Path) -> None:
        text = folder / source_file
        text.write_text(source, encoding="utf-8")
        command = [compiler, *flags, "-o", str(folder / f"{name}.so"), str(text), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SEC)

    if cache_root().is_dir() and not _is_private(cache_root()):
        with tempfile.TemporaryDirectory() as folder:  # of mode 0700; what is loaded stays loaded
            build(Path(folder))
            return ctypes.CDLL(str(Path(folder) / f"{name}.so"))
    cached = cached_folder(f"{name.replace('_', '-')}-{key}", build)
    library = cached / f"{name}.so"
    if not all(map(_is_private, (cache_root(), cached, library))):
        raise OSError("the cache can be written by others")
    return ctypes.CDLL(str(library))


def _is_private(path: Path) -> bool:
    """Whether only this user (or root) can change what lies at `path`."""
    found = path.stat()
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & 0o022
