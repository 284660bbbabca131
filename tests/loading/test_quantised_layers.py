"""Quantised matrices compute what their stored parts say, in 4 and in 8 bits."""

import pytest
import torch
from bitsandbytes import functional
from transformers.quantizers.quantizers_utils import should_convert_module

from gemma3vl_app.loading import int8, nf4

CPU = torch.device("cpu")


@pytest.fixture
def weight():
    return (torch.randn(64, 192, generator=torch.manual_seed(0)) * 0.05).to(torch.bfloat16)


@pytest.fixture
def inputs():
    return torch.randn(3, 5, 192, generator=torch.manual_seed(1))


def test_nf4_parts_are_what_bitsandbytes_saves(weight):
    layer = torch.nn.Sequential(
        __import__("bitsandbytes").nn.Linear4bit(
            192, 64, bias=False, compress_statistics=False, quant_type="nf4"
        )
    )
    layer[0].weight.data = weight.clone()
    layer.to("cpu")  # quantises
    saved = layer.state_dict()
    ours = {f"0.weight{suffix}": part for suffix, part in nf4.quantise(weight).items()}
    assert saved.keys() == ours.keys()
    assert all(torch.equal(saved[key], ours[key]) for key in ours)


def test_an_nf4_layer_multiplies_with_the_dequantised_matrix(weight, inputs):
    parts = nf4.quantise(weight.float())
    layer = nf4.layer(dict(parts), (64, 192), torch.float32, CPU).eval()
    expected = inputs @ nf4.dequantise(dict(parts)).T
    if nf4.packs_for_cpu():  # the fused kernel computes in bf16
        assert torch.allclose(layer(inputs), expected, atol=0.05)
    else:
        assert torch.allclose(layer(inputs), expected, atol=1e-5)


def test_nf4_rounds_each_weight_to_one_of_sixteen_levels_of_its_block(weight):
    back = nf4.dequantise(nf4.quantise(weight.float()))
    blocks = back.reshape(-1, nf4.BLOCK)
    assert max(len(block.unique()) for block in blocks) <= 16
    largest = weight.float().reshape(-1, nf4.BLOCK).abs().amax(1)
    # The widest gap between two levels is 0.3 of the block's largest value.
    error = (back - weight.float()).reshape(-1, nf4.BLOCK).abs().amax(1)
    assert (error <= 0.16 * largest).all()


@pytest.mark.skipif(
    not hasattr(functional, "_convert_weight_packed_for_cpu"), reason="another bitsandbytes"
)
def test_the_cpu_kernels_order_of_weights_can_be_undone_by_bitsandbytes(weight):
    parts = nf4.quantise(weight)
    layer = nf4.layer(nf4.pack_for_cpu(dict(parts)), (64, 192), torch.bfloat16, CPU)
    data, _ = functional._convert_weight_packed_for_cpu_inverse(
        layer.weight.data, layer.weight.quant_state
    )
    assert torch.equal(data, parts[""])


@pytest.mark.skipif(
    not hasattr(functional, "_convert_weight_packed_for_cpu"), reason="another bitsandbytes"
)
def test_gradients_pass_through_a_packed_layer_whose_kernel_has_none(weight, inputs):
    parts = nf4.quantise(weight)
    dense = nf4.dequantise(dict(parts)).float()  # packing rounds the blocks' scales to bf16
    packed = nf4.layer(nf4.pack_for_cpu(parts), (64, 192), torch.bfloat16, CPU).eval()
    leaf = inputs.clone().requires_grad_()
    output = packed(leaf)
    (gradient,) = torch.autograd.grad(output.square().sum(), leaf)
    assert torch.allclose(output, inputs @ dense.T, atol=0.01, rtol=0.01)
    assert torch.allclose(gradient, 2 * (inputs @ dense.T) @ dense, atol=0.02, rtol=0.02)


@pytest.mark.skipif(not nf4.packs_for_cpu(), reason="needs AVX512-BF16")
def test_a_packed_layer_computes_as_one_that_bitsandbytes_packs_itself(weight, inputs):
    theirs = nf4.layer(nf4.quantise(weight), (64, 192), torch.bfloat16, CPU).eval()
    theirs.support_avx512bf16_for_cpu = functional.has_avx512bf16()  # our loading forbids it
    ours = nf4.layer(nf4.pack_for_cpu(nf4.quantise(weight)), (64, 192), torch.bfloat16, CPU).eval()
    x = inputs.to(torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


def test_matrices_of_other_shapes_are_left_alone():
    assert nf4.fits((4304, 1152), packed=False)
    assert not nf4.fits((4304, 1152), packed=True), "the fused kernel takes groups of 32 rows"
    assert not nf4.fits((64, 100), packed=False)


def test_int8_errs_by_at_most_half_a_step_of_its_row(weight):
    parts = int8.quantise(weight)
    back = parts[""].float() * parts[int8.SCALE][:, None]
    assert (back - weight.float()).abs().max(dim=1).values.le(0.5001 * parts[int8.SCALE]).all()
    largest = weight.float().abs().amax(1)
    assert parts[int8.SCALE].le(largest / 127 * 1.01).all(), "steps are as fine as eight bits allow"


def test_int8_scales_are_exact_in_bf16(weight):
    scale = int8.quantise(weight)[int8.SCALE]
    assert torch.equal(scale.to(torch.bfloat16).float(), scale)


def test_int8_of_a_row_of_zeros_is_zero():
    parts = int8.quantise(torch.zeros(2, 64))
    assert not parts[""].any()
    assert torch.isfinite(parts[int8.SCALE]).all()


@pytest.mark.parametrize("rows", [1, 3, int8.FEW_ROWS, int8.FEW_ROWS + 1, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_layer_gives_the_same_for_few_and_many_rows(weight, rows, dtype):
    parts = int8.quantise(weight)
    layer = int8.Int8Linear(parts, dtype)
    x = torch.randn(rows, 192, generator=torch.manual_seed(2)).to(dtype)
    expected = (x.float() @ parts[""].float().T) * parts[int8.SCALE]
    atol = 1e-4 if dtype == torch.float32 else 0.02
    assert torch.allclose(layer(x).float(), expected, atol=atol)
    assert layer(x).dtype == dtype


@pytest.mark.parametrize("offset", [8, 24, 63])
def test_an_int8_layer_reads_weights_that_lie_anywhere_as_in_a_mapped_file(weight, inputs, offset):
    parts = int8.quantise(weight)
    memory = torch.zeros(weight.numel() + 64, dtype=torch.int8)
    begin = offset - memory.data_ptr() % 64
    begin += 64 if begin < 0 else 0
    moved = memory[begin : begin + weight.numel()].view(weight.shape).copy_(parts[""])
    assert moved.data_ptr() % 64 == offset
    layer = int8.Int8Linear({**parts, "": moved}, torch.bfloat16)
    x = inputs.reshape(-1, 192)[:4].to(torch.bfloat16)
    expected = int8.Int8Linear(parts, torch.bfloat16)(x)
    assert torch.equal(layer(x), expected)


def test_gradients_pass_through_an_int8_layer(weight, inputs):
    layer = int8.Int8Linear(int8.quantise(weight), torch.float32)
    x = inputs.clone().requires_grad_()
    layer(x).sum().backward()
    expected = (layer.weight.float() * layer.scale[:, None]).sum(0)
    assert torch.allclose(x.grad, expected.expand_as(x), atol=1e-4)


def test_the_names_that_old_lists_skip_no_longer_match_in_transformers_5():
    """Why stored weights decide what is quantised, and not a repository's list of skipped names."""
    tower = "model.vision_tower.encoder.layers.0.mlp.fc1"
    assert should_convert_module(tower, ["vision_tower", "multi_modal_projector"])
    assert not should_convert_module(tower, ["model.vision_tower", "model.multi_modal_projector"])


@pytest.mark.parametrize("rows", [1, int8.FEW_ROWS_COMPILED, int8.FEW_ROWS_COMPILED + 1])
def test_large_matrices_are_quantised_and_widened_in_pieces(weight, rows, monkeypatch):
    whole = int8.quantise(weight)
    monkeypatch.setattr(int8, "ROWS_AT_ONCE", 10)
    parts = int8.quantise(weight)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    x = torch.randn(rows, 192, generator=torch.manual_seed(2))
    expected = x @ (parts[""].float() * parts[int8.SCALE][:, None]).T
    found = int8.Int8Linear(parts, torch.float32)(x)
    assert torch.allclose(found, expected, atol=0.02)
