"""bfloat16 weights multiplied in float32: the numbers of float32, with and without the kernel."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma3vl_app.loading import compiled, load_model, w16

IDS = torch.tensor([[2, 105, 2364, 107, 5000, 600, 70, 106]])


@torch.inference_mode()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, w16.FEW_ROWS, w16.FEW_ROWS + 1, 100])
def test_the_product_is_that_of_float32(rows, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(compiled, "few_rows", lambda dtype: None)
        monkeypatch.setattr(w16, "WIDENED", 1000)  # in many pieces
    torch.manual_seed(rows)
    weight, bias = torch.randn(301, 77).bfloat16(), torch.randn(301)
    layer, x = w16.Linear16(weight), torch.randn(1, rows, 77)
    expected = x @ weight.float().T
    assert torch.allclose(layer(x), expected, atol=1e-4)
    layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    assert torch.allclose(layer(x), expected + bias, atol=1e-4)
    assert torch.allclose(layer(x), expected + bias, atol=1e-4)  # the bias is added once


def test_a_gradient_flows():
    weight = torch.randn(30, 20).bfloat16()
    x = torch.randn(2, 20, requires_grad=True)
    w16.Linear16(weight)(x).sum().backward()
    assert torch.allclose(x.grad[1], weight.float().sum(0), atol=1e-5)


def test_a_model_computes_what_it_computes_in_float32_from_half_the_memory(tiny):
    exact, loaded = load_model(tiny, weights="fp32"), load_model(tiny, weights="w16")
    assert (logits(loaded.model) - logits(exact.model)).abs().max() < 1e-4
    assert (loaded.plan.dtype, loaded.plan.weights) == ("float32", "w16")
    for name, module in loaded.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert type(module) is w16.Linear16 and module.weight.dtype == torch.bfloat16, name
    table = loaded.model.get_input_embeddings().weight
    assert table.data_ptr() == loaded.model.lm_head.weight.data_ptr()


def test_a_config_that_says_bfloat16_of_other_weights_is_not_believed(tiny, tmp_path):
    folder = tmp_path / "wide"
    shutil.copytree(tiny, folder)
    wide = {key: each.float() for key, each in load_file(tiny / "model.safetensors").items()}
    save_file(wide, folder / "model.safetensors")
    assert load_model(folder, max_memory={"cpu": "8GiB"}).plan.weights in ("fp32", "bf16")
    assert load_model(tiny, max_memory={"cpu": "8GiB"}).plan.weights in ("w16", "bf16")
