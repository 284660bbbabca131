"""The kernel in C: right where it is compiled, and never missed where it is not."""

import subprocess

import pytest
import torch

from gemma3vl_app.loading import c_library, compiled
from gemma3vl_app.loading.cache import CACHE_VARIABLE

KINDS = [torch.bfloat16, torch.int8]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Nothing is compiled yet, and nothing of it stays."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    compiled._kernels.cache_clear()
    yield tmp_path
    compiled._kernels.cache_clear()


@pytest.fixture
def multiply(request):
    kernel = compiled.few_rows(request.param)
    if kernel is None:
        pytest.skip("no compiler here, or a processor without AVX2")
    return kernel


@pytest.mark.parametrize("multiply, dtype", [(kind, kind) for kind in KINDS], indirect=["multiply"])
@pytest.mark.parametrize("inputs", [1, 7, 8, 15, 16, 33, 640])
@pytest.mark.parametrize("outputs", [1, 2, 7, 8, 9, 65])
def test_it_multiplies_as_torch_does(multiply, dtype, outputs, inputs):
    torch.manual_seed(inputs)
    weight = (30 * torch.randn(outputs, inputs)).clamp(-127, 127).to(dtype)
    for rows in range(1, 10):
        x = torch.randn(rows, inputs)
        expected = x @ weight.float().T
        assert torch.allclose(multiply(x, weight), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("multiply", [torch.bfloat16], indirect=True)
def test_what_lies_scattered_in_memory_is_multiplied_rightly(multiply):
    x, weight = torch.randn(20, 3).T, torch.randn(20, 11).bfloat16().T
    assert torch.allclose(multiply(x, weight), x @ weight.float().T, atol=1e-5)


@pytest.mark.parametrize("multiply", [torch.bfloat16], indirect=True)
@pytest.mark.parametrize(
    ("rows", "weight"),
    [
        (torch.ones(1, 4, dtype=torch.float64), torch.ones(2, 4).bfloat16()),
        (torch.ones(1, 4), torch.ones(2, 4)),
        (torch.ones(1, 4), torch.ones(2, 5).bfloat16()),
    ],
)
def test_other_kinds_and_sizes_are_refused_before_memory_is_read(multiply, rows, weight):
    with pytest.raises(TypeError):
        multiply(rows, weight)


@pytest.mark.parametrize("multiply", [torch.bfloat16], indirect=True)
def test_torchs_default_dtype_does_not_matter(multiply):
    x, weight = torch.randn(2, 30), torch.randn(500, 30).bfloat16()
    expected = x @ weight.float().T
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = multiply(x, weight)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("multiply", [torch.bfloat16], indirect=True)
def test_what_lies_on_another_device_is_refused(multiply):
    with pytest.raises(TypeError, match="not on the CPU"):
        multiply(torch.ones(1, 4, device="meta"), torch.ones(2, 4).bfloat16())


def test_a_library_that_others_could_have_put_there_is_not_loaded(fresh, monkeypatch):
    if compiled.few_rows(torch.bfloat16) is None:
        pytest.skip("no compiler here")
    loaded = []
    real = c_library.ctypes.CDLL
    monkeypatch.setattr(c_library.ctypes, "CDLL", lambda path: loaded.append(path) or real(path))
    fresh.chmod(0o777)
    compiled._kernels.cache_clear()
    assert compiled.few_rows(torch.bfloat16) is not None  # compiled anew, elsewhere
    fresh.chmod(0o700)
    (folder,) = (path for path in fresh.iterdir() if path.is_dir())
    (folder / "few_rows.so").chmod(0o666)
    compiled._kernels.cache_clear()
    assert compiled.few_rows(torch.bfloat16) is None
    assert len(loaded) == 1 and str(fresh) not in loaded[0]


@pytest.mark.parametrize("multiply", [torch.bfloat16], indirect=True)
def test_not_a_number_stays_one(multiply):
    weight = torch.ones(3, 16).bfloat16()
    weight[1, 9] = float("nan")
    assert multiply(torch.ones(1, 16), weight).isnan().tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("packed", "scales_zeros", "block"),
    [
        (torch.zeros(32, 16, dtype=torch.uint8), torch.zeros(1, 32, 2), 32),  # scales in float32
        (torch.zeros(32, 16), torch.zeros(1, 32, 2).bfloat16(), 32),
        (torch.zeros(33, 16, dtype=torch.uint8), torch.zeros(1, 33, 2).bfloat16(), 32),
        (torch.zeros(32, 8, dtype=torch.uint8), torch.zeros(1, 32, 2).bfloat16(), 32),
        (torch.zeros(32, 16, dtype=torch.uint8), torch.zeros(2, 32, 2).bfloat16(), 32),
        (torch.zeros(32, 16, dtype=torch.uint8), torch.zeros(1, 32, 2).bfloat16(), 16),
    ],
)
def test_4_bit_weights_of_other_kinds_and_sizes_are_refused(packed, scales_zeros, block):
    widen = compiled.widen_4()
    if widen is None:
        pytest.skip("no compiler here")
    with pytest.raises(TypeError):
        widen(packed, scales_zeros, block)


def test_it_is_compiled_once(fresh):
    if compiled.few_rows(torch.bfloat16) is None:
        pytest.skip("no compiler here")
    (folder,) = (path for path in fresh.iterdir() if path.is_dir())
    before = (folder / "few_rows.so").stat().st_mtime_ns
    compiled._kernels.cache_clear()
    assert compiled.few_rows(torch.bfloat16) is not None
    assert (folder / "few_rows.so").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "trouble",
    [
        {"COMPILERS": ("no-such-compiler",)},
        {"FLAGS": ("--no-such-flag",)},
        {"FOR_PROCESSOR": {}},
        {"CLOSE": -1.0},
        {"COMPILE_SEC": 1e-6},
    ],
)
def test_without_a_kernel_torch_stands_in(fresh, monkeypatch, trouble):
    for name, value in trouble.items():
        owner = compiled if hasattr(compiled, name) else c_library
        monkeypatch.setattr(owner, name, value)
    assert compiled.few_rows(torch.bfloat16) is None
    assert compiled.few_rows(torch.int8) is None


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(fresh, monkeypatch):
    (fresh / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(fresh / "file" / "below"))
    assert compiled.few_rows(torch.bfloat16) is None


def test_what_the_compiler_says_is_kept_to_itself(fresh, monkeypatch, caplog):
    def fails(command, **options):
        raise subprocess.CalledProcessError(1, command, stderr=b"/secret/path")

    monkeypatch.setattr(c_library.subprocess, "run", fails)
    assert compiled.few_rows(torch.bfloat16) is None
    assert "/secret" not in caplog.text
