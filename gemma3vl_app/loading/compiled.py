"""Our one kernel in C, compiled at first use where there is a compiler; torch stands in elsewhere.

Kept in the cache by its text, compiler and options, which say for which processors it is. Compiled
by GCC it shares torch's OpenMP threads: a second pool would fight with them for the cores.
Shapes: M rows, N output features, K input features.
"""

from __future__ import annotations

import ctypes
import functools
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

import torch

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.cache import cache_root, cached_folder

Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (M, K), (N, K) to (M, N)

SOURCE, LIBRARY = "few_rows.c", "few_rows.so"
FUNCTIONS = {torch.bfloat16: "multiply_16", torch.int8: "multiply_8"}
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-fopenmp", "-shared", "-fPIC")
FOR_PROCESSOR = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx512f", "-mfma")}
COMPILE_SEC = 60.0
CLOSE = 1e-5  # relative error against torch's own product

logger = logging.getLogger(__name__)


def few_rows(dtype: torch.dtype) -> Multiply | None:
    """Return what multiplies float32 rows (M, K) with a matrix (N, K) of `dtype`; None: not here.

    The matrix is bfloat16 or int8 (without its scales).
    """
    return _kernels().get(dtype)


@functools.cache
def _kernels() -> dict[torch.dtype, Multiply]:
    flags = FOR_PROCESSOR.get(torch.backends.cpu.get_cpu_capability())
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if flags is None or compiler is None or sys.platform != "linux":
        logger.info("There is no compiled kernel here; torch stands in, slower.")
        return {}
    try:
        library = _library(compiler, (*FLAGS, *flags))
        kernels = {dtype: _kernel(library, dtype) for dtype in FUNCTIONS}
        _check(kernels)
    except (OSError, LoadError, subprocess.SubprocessError, AttributeError, ValueError) as error:
        logger.warning(
            "The kernel for few rows cannot be used here (%s); torch stands in, slower.",
            type(error).__name__,
        )
        return {}
    return kernels


def _library(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """Return the compiled library: from the cache, where only this user can have put it there."""
    source = resources.files("gemma3vl_app.loading").joinpath(SOURCE).read_text("utf-8")
    settings = "\n".join((source, compiler, *flags, platform.machine()))
    key = hashlib.sha256(settings.encode()).hexdigest()[:12]

    def build(folder: Path) -> None:
        text = folder / SOURCE
        text.write_text(source, encoding="utf-8")
        command = [compiler, *flags, "-o", str(folder / LIBRARY), str(text)]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SEC)

    if cache_root().is_dir() and not _is_private(cache_root()):
        with tempfile.TemporaryDirectory() as folder:  # of mode 0700; what is loaded stays loaded
            build(Path(folder))
            return ctypes.CDLL(str(Path(folder) / LIBRARY))
    cached = cached_folder(f"few-rows-{key}", build)
    if not all(map(_is_private, (cache_root(), cached, cached / LIBRARY))):
        raise OSError("the cache can be written by others")
    return ctypes.CDLL(str(cached / LIBRARY))


def _is_private(path: Path) -> bool:
    """Whether only this user (or root) can change what lies at `path`."""
    found = path.stat()
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & 0o022


def _kernel(library: ctypes.CDLL, dtype: torch.dtype) -> Multiply:
    run = getattr(library, FUNCTIONS[dtype])
    run.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 3
    run.restype = None

    def multiply(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        outputs, inputs = weight.shape
        if rows.dtype != torch.float32 or weight.dtype != dtype or rows.shape[1] != inputs:
            raise TypeError(f"{rows.dtype} {tuple(rows.shape)} with {weight.dtype} {weight.shape}")
        if rows.device.type != "cpu" or weight.device.type != "cpu":
            raise TypeError(
                f"rows on {rows.device} and a matrix on {weight.device}, not on the CPU"
            )
        rows, weight = rows.contiguous(), weight.contiguous()
        output = torch.empty(len(rows), outputs, dtype=torch.float32, device="cpu")
        pointers = (rows.data_ptr(), weight.data_ptr(), output.data_ptr())
        run(*pointers, len(rows), outputs, inputs)
        return output

    return multiply


def _check(kernels: dict[torch.dtype, Multiply]) -> None:
    """Raise `ValueError` unless the kernels multiply as torch does, odd sizes included."""
    made = torch.Generator().manual_seed(0)
    for dtype, multiply in kernels.items():
        for rows, outputs, inputs in ((1, 19, 77), (7, 32, 64)):
            x = torch.randn(rows, inputs, generator=made)
            weight = (50 * torch.randn(outputs, inputs, generator=made)).clamp(-127, 127).to(dtype)
            expected = x @ weight.float().T
            if float((multiply(x, weight) - expected).norm() / expected.norm()) > CLOSE:
                raise ValueError("the compiled kernel multiplies wrongly")
