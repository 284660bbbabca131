"""The kernels in C for bfloat16: right where they are compiled, and never missed elsewhere."""

import subprocess

import pytest
import torch

from gemma3vl_app.loading import c_library, compiled, compiled_bf16, int4, int4_vnni
from gemma3vl_app.loading.cache import CACHE_VARIABLE
from gemma3vl_app.loading.int8 import Int8Linear, quantise
from gemma3vl_app.loading.w16 import Linear16

KINDS = [torch.bfloat16, torch.int8]
CLOSE = 0.004  # results are rounded to bfloat16: by 0.2 % on average
needs_kernels = pytest.mark.skipif(
    "not compiled_bf16.is_here()", reason="no C compiler, or a processor without AVX512-BF16"
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Nothing is compiled yet, and nothing of it stays."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    for each in (compiled, compiled_bf16):
        each._kernels.cache_clear()
    yield tmp_path
    for each in (compiled, compiled_bf16):
        each._kernels.cache_clear()


def relative(found, expected):
    return float((found.float() - expected).norm() / expected.norm())


@needs_kernels
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 640])
@pytest.mark.parametrize("outputs", [1, 4, 15, 16, 18, 67])
def test_it_multiplies_as_torch_does(dtype, outputs, inputs):
    multiply = compiled_bf16.few_rows(dtype)
    weight = (30 * torch.randn(outputs, inputs)).clamp(-127, 127).to(dtype)
    for count in (*range(1, 10), 17):
        rows = torch.randn(count, inputs).bfloat16()
        found = multiply(rows, weight, None)
        assert found.dtype == torch.bfloat16 and found.shape == (count, outputs)
        assert relative(found, rows.float() @ weight.float().T) < CLOSE


@needs_kernels
@pytest.mark.parametrize("outputs", [5, 32])
def test_scales_of_8_bits_are_applied_before_rounding(outputs):
    weight = torch.randint(-127, 128, (outputs, 64), dtype=torch.int8)
    rows, scales = torch.randn(3, 64).bfloat16(), torch.rand(outputs).bfloat16()
    expected = rows.float() @ (weight.float() * scales.float()[:, None]).T
    assert relative(compiled_bf16.few_rows(torch.int8)(rows, weight, scales), expected) < CLOSE


@needs_kernels
@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 40])
@pytest.mark.parametrize("shape", [(16, 32), (48, 96), (192, 640)])
def test_4_bit_weights_are_multiplied_as_the_matrix_they_stand_for(shape, count):
    parts = int4.quantise(torch.randn(shape))
    rows = torch.randn(count, shape[1]).bfloat16()
    expected = rows.float() @ int4.dequantise(parts, torch.float32).T
    found = compiled_bf16.multiply_4()(rows, parts[""], parts[int4.SCALES])
    assert relative(found, expected) < 0.01  # rows become int8: 0.5 %


@needs_kernels
def test_a_row_s_result_does_not_depend_on_what_is_computed_with_it():
    parts, rows = int4.quantise(torch.randn(64, 320)), torch.randn(13, 320).bfloat16()
    multiply = compiled_bf16.multiply_4()
    together = multiply(rows, parts[""], parts[int4.SCALES])
    alone = [multiply(row[None], parts[""], parts[int4.SCALES]) for row in rows]
    assert torch.equal(together, torch.cat(alone))


@needs_kernels
def test_a_group_with_one_large_value_does_not_spoil_the_others():
    parts, rows = int4.quantise(torch.randn(32, 128)), torch.randn(1, 128).bfloat16()
    rows[0, 3] = 1000.0  # as some channels of Gemma 3 are
    others = slice(32, 128)
    dense = int4.dequantise(parts, torch.float32)
    of_group = rows[:, :32].float() @ dense[:, :32].T
    found = compiled_bf16.multiply_4()(rows, parts[""], parts[int4.SCALES]).float()
    expected = of_group + rows[:, others].float() @ dense[:, others].T
    assert relative(found, expected) < 0.01


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value):
    weight = torch.ones(18, 64).bfloat16()
    weight[1, 9] = value
    found = compiled_bf16.few_rows(torch.bfloat16)(torch.ones(1, 64).bfloat16(), weight, None)
    assert (~found.isfinite()).nonzero().tolist() == [[0, 1]]
    parts, rows = int4.quantise(torch.randn(32, 64)), torch.ones(2, 64).bfloat16()
    rows[1, 40] = value
    found = compiled_bf16.multiply_4()(rows, parts[""], parts[int4.SCALES])
    assert found.isfinite().all(dim=1).tolist() == [True, False]
    assert not found[1].isfinite().any()


@needs_kernels
def test_rows_of_zeros_give_zeros_and_no_rows_give_none():
    parts, multiply = int4.quantise(torch.randn(32, 64)), compiled_bf16.multiply_4()
    found = multiply(torch.zeros(1, 64).bfloat16(), parts[""], parts[int4.SCALES])
    assert found.tolist() == [[0.0] * 32]
    assert multiply(torch.zeros(0, 64).bfloat16(), parts[""], parts[int4.SCALES]).shape == (0, 32)
    empty = torch.zeros(0, 64).bfloat16()
    assert compiled_bf16.few_rows(torch.bfloat16)(empty, torch.ones(5, 64).bfloat16(), None).shape


@needs_kernels
def test_what_lies_scattered_in_memory_is_multiplied_rightly():
    rows, weight = torch.randn(40, 3).bfloat16().T, torch.randn(40, 11).bfloat16().T
    found = compiled_bf16.few_rows(torch.bfloat16)(rows, weight, None)
    assert relative(found, rows.float() @ weight.float().T) < CLOSE


@needs_kernels
@pytest.mark.parametrize(
    ("rows", "weight", "scales"),
    [
        (torch.ones(1, 4), torch.ones(2, 4).bfloat16(), None),
        (torch.ones(1, 4).bfloat16(), torch.ones(2, 4), None),
        (torch.ones(1, 4).bfloat16(), torch.ones(2, 5).bfloat16(), None),
        (torch.ones(1, 4).bfloat16(), torch.ones(2, 4).bfloat16(), torch.ones(2)),
        (torch.ones(1, 4).bfloat16(), torch.ones(2, 4).bfloat16(), torch.ones(3).bfloat16()),
        (torch.ones(1, 4, device="meta").bfloat16(), torch.ones(2, 4).bfloat16(), None),
    ],
)
def test_other_kinds_and_sizes_are_refused_before_memory_is_read(rows, weight, scales):
    with pytest.raises(TypeError):
        compiled_bf16.few_rows(torch.bfloat16)(rows, weight, scales)


@needs_kernels
@pytest.mark.parametrize(
    ("rows", "packed", "scales_zeros"),
    [
        (torch.ones(1, 32), torch.zeros(16, 16).byte(), torch.zeros(1, 1, 2, 16).bfloat16()),
        (torch.ones(1, 32).bfloat16(), torch.zeros(16, 16), torch.zeros(1, 1, 2, 16).bfloat16()),
        (torch.ones(1, 32).bfloat16(), torch.zeros(16, 16).byte(), torch.zeros(1, 1, 2, 16)),
        (
            torch.ones(1, 64).bfloat16(),
            torch.zeros(16, 16).byte(),
            torch.zeros(1, 1, 2, 16).bfloat16(),
        ),
        (
            torch.ones(1, 32).bfloat16(),
            torch.zeros(17, 16).byte(),
            torch.zeros(1, 1, 2, 16).bfloat16(),
        ),
        (
            torch.ones(1, 32).bfloat16(),
            torch.zeros(32, 16).byte(),
            torch.zeros(1, 1, 2, 16).bfloat16(),
        ),
    ],
)
def test_4_bit_weights_of_other_kinds_and_sizes_are_refused(rows, packed, scales_zeros):
    with pytest.raises(TypeError):
        compiled_bf16.multiply_4()(rows, packed, scales_zeros)


@pytest.mark.parametrize(
    "trouble",
    [
        {"COMPILERS": ("no-such-compiler",)},
        {"FLAGS": ("--no-such-flag",)},
        {"NEEDED": {"a thing no processor has": "-O3"}},
        {"CLOSE": -1.0},
        {"CLOSE_4": -1.0},
        {"COMPILE_SEC": 1e-6},
    ],
)
def test_without_kernels_torch_stands_in(fresh, monkeypatch, trouble):
    for name, value in trouble.items():
        owner = compiled_bf16 if hasattr(compiled_bf16, name) else c_library
        monkeypatch.setattr(owner, name, value)
    assert not compiled_bf16.is_here()
    assert compiled_bf16.few_rows(torch.bfloat16) is None and compiled_bf16.multiply_4() is None
    assert int4.block_rows() > compiled_bf16.LANES  # weights lie in torch's order
    parts, rows = int4.quantise(torch.randn(64, 64)), torch.randn(2, 64).bfloat16()
    expected = rows.float() @ int4.dequantise(parts, torch.float32).T
    assert relative(int4.Int4Linear(parts)(rows), expected) < 0.01


def test_what_the_compiler_says_is_kept_to_itself(fresh, monkeypatch, caplog):
    def fails(command, **options):
        raise subprocess.CalledProcessError(1, command, stderr=b"/secret/path")

    monkeypatch.setattr(c_library.subprocess, "run", fails)
    assert not compiled_bf16.is_here()
    assert "/secret" not in caplog.text


def test_a_processor_that_torch_is_told_to_spare_is_spared(fresh, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not compiled_bf16.is_here()


@needs_kernels
@pytest.mark.parametrize("count", [1, 8, 33, 129])
def test_layers_compute_the_same_with_the_kernels_switched_off(count):
    weight, rows = torch.randn(48, 96), torch.randn(count, 96).bfloat16()
    eight, four = quantise(weight), int4.quantise(weight)
    for layer, close in (
        (Linear16(weight), CLOSE),
        (Int8Linear(eight, torch.bfloat16), 0.01),
        (int4.Int4Linear(four), 0.01),
    ):
        found = layer(rows)
        with compiled.switched_off():
            expected = layer(rows)
        assert found.dtype == expected.dtype == torch.bfloat16
        assert relative(found, expected.float()) < close


@needs_kernels
def test_the_packed_order_is_that_of_the_kernel():
    codes = torch.randint(0, 16, (32, 64), dtype=torch.uint8)
    scales, zeros = torch.rand(32, 2).bfloat16(), torch.randn(32, 2).bfloat16()
    packed, scales_zeros = int4_vnni.pack(codes, scales, zeros)
    expected = (codes.float().view(32, 2, 32) - 8) * scales[..., None] + zeros[..., None]
    assert torch.equal(int4_vnni.dense(packed, scales_zeros, torch.float32), expected.flatten(1))
    found = compiled_bf16.multiply_4()(torch.eye(64).bfloat16(), packed, scales_zeros)
    assert relative(found.T, expected.flatten(1)) < 0.005
