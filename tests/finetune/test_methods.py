"""Which weights learn under each method; that 4-bit layers keep letting gradients through."""

from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from gemma3vl_app.errors import RecipeError, TrainingError
from gemma3vl_app.finetune.collate import Collator, answer_loss
from gemma3vl_app.finetune.methods import (
    keep_gradients,
    parameter_counts,
    put_method,
    trainable,
)
from gemma3vl_app.finetune.sources import read_jsonl
from gemma3vl_app.loading import load_model
from gemma3vl_app.loading.checkpoint import open_checkpoint
from gemma3vl_app.loading.loader import build_skeleton
from tests.finetune.conftest import but


@pytest.fixture
def skeleton(tiny):
    """The tiny model without values."""
    return build_skeleton(open_checkpoint(tiny))


def parts(model):
    """The parts of the model that learn something."""
    found = set()
    for name in trainable(model):
        kinds = ("vision_tower", "multi_modal_projector", "language_model", "lm_head")
        found.add(next(kind for kind in kinds if kind in name))
    return found


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, {"language_model"}),
        ({"train_language_model": False, "train_projector": True}, {"multi_modal_projector"}),
        (
            {"train_vision_tower": True, "train_projector": True},
            {"language_model", "vision_tower", "multi_modal_projector"},
        ),
    ],
)
def test_sft_trains_the_parts_that_are_switched_on(skeleton, recipe, switches, expected):
    model = put_method(skeleton, but(recipe, method="sft", **switches))
    assert parts(model) == expected
    assert all(parameter.dtype == torch.float32 for parameter in trainable(model).values())


def test_sft_counts_the_tied_output_matrix_once(skeleton, recipe):
    learning, total = parameter_counts(put_method(skeleton, but(recipe, method="sft")))
    embeddings = skeleton.get_input_embeddings().weight.numel()
    assert embeddings < learning < total < 1.1 * embeddings


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_train_beside_every_linear_layer_of_the_parts(skeleton, recipe, method):
    model = put_method(skeleton, but(recipe, method=method, train_vision_tower=True))
    names = [name for name in trainable(model) if name.endswith("lora_A.default.weight")]
    linears = [
        name
        for name, module in skeleton.named_modules()
        if name.endswith(("_proj", "fc1", "fc2")) and "vision" in name
    ]
    assert len(names) == 6 * 7 + len(linears)
    assert all("lora_" in name for name in trainable(model))
    assert parts(model) == {"language_model", "vision_tower"}
    assert any("magnitude" in name for name in trainable(model)) == (method == "dora")


def test_an_adapter_begins_as_its_seed_says(tiny, recipe):
    def first(seed):
        model = put_method(load_model(tiny, weights="fp32").model, but(recipe, seed=seed))
        return next(iter(trainable(model).values())).detach().clone()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_a_part_that_the_model_has_not_is_refused_by_name(recipe):
    config = Gemma3TextConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, head_dim=4)
    with torch.device("meta"):
        text_only = Gemma3ForCausalLM(config)
    recipe = but(recipe, model="somebody/text", train_vision_tower=True)
    with pytest.raises(RecipeError, match="train_vision_tower is set, but 'somebody/text' reads"):
        put_method(text_only, recipe)


# --- nf4 ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_4_bits(tiny):
    return load_model(tiny, weights="nf4", for_training=True)


@pytest.fixture
def adapted(tiny, recipe, tokenizer, format):
    """A model in 4 bits with an adapter whose matrices are all non-zero, and a batch for it."""
    loaded = load_model(tiny, weights="nf4", for_training=True)
    model = put_method(loaded.model, but(recipe, method="qlora"))
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.normal_(std=0.02)
    examples = read_jsonl(Path(recipe.data))[:2]
    return model, Collator(tokenizer, format)(examples)


def four_bit_layers(model):
    return [m for m in model.modules() if type(m).__name__ == "Linear4bit"]


def gradients(model, batch):
    """Train mode, one backward pass: the gradient norm of each parameter that learns."""
    model.train()
    model.zero_grad()
    answer_loss(model, batch).backward()
    missing = [name for name, each in trainable(model).items() if each.grad is None]
    assert not missing
    return {name: each.grad.norm().item() for name, each in trainable(model).items()}


def test_qlora_keeps_its_gradients_after_an_evaluation(adapted):
    """On CPUs with AVX512-BF16, bitsandbytes repacks in an evaluation, and gradients vanish.

    With the guard removed this fails on such a machine; the next test fails on any.
    """
    model, batch = adapted
    before = gradients(model, batch)
    model.eval()
    with torch.no_grad():
        answer_loss(model, batch)
    after = gradients(model, batch)
    assert len(four_bit_layers(model)) == 6 * 7
    assert all(norm > 0 for norm in before.values())
    for name, norm in after.items():
        assert norm == pytest.approx(before[name], rel=1e-3), name


def test_no_evaluation_packs_the_weights_of_a_model_in_training(tiny, recipe, monkeypatch):
    """Plays an AVX512-BF16 machine: every layer believes in the fused kernel."""
    from bitsandbytes.nn import modules

    def packed(*arguments):
        raise AssertionError("bitsandbytes packed weights of a model in training")

    monkeypatch.setattr(modules, "_convert_weight_packed_for_cpu", packed)
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    loaded = load_model(tiny, weights="fp32")
    linear = modules.Linear4bit(64, 64, bias=False, quant_type="nf4")
    linear.weight = modules.Params4bit(torch.randn(64, 64), quant_type="nf4").to("cpu")
    loaded.model.model.language_model.layers[0].self_attn.q_proj = linear
    assert linear.support_avx512bf16_for_cpu
    x = torch.randn(1, 64)
    with torch.no_grad(), pytest.raises(AssertionError, match="packed"):
        linear.eval()(x)  # the trap itself: without the guard it snaps
    put_method(loaded.model, but(recipe, method="qlora"))
    loaded.model.eval()
    with torch.no_grad():
        linear(x)


def test_weights_that_are_packed_already_are_refused():
    """As `load` makes them for answering on a CPU with AVX512-BF16."""
    linear = torch.nn.Linear(2, 2)
    linear.weight.quant_state = type("State", (), {"packing_format_for_cpu": True})()
    with pytest.raises(TrainingError, match="packed for answering"):
        keep_gradients(torch.nn.Sequential(linear))


def test_models_for_training_are_never_loaded_packed(in_4_bits, tiny, monkeypatch):
    """Plays an AVX512-BF16 machine while loading."""
    from gemma3vl_app.loading import conversion, nf4

    plan = in_4_bits.plan
    shapes = {"model.language_model.layers.0.mlp.up_proj.weight": (128, 64)}
    monkeypatch.setattr(nf4, "packs_for_cpu", lambda: True)
    assert conversion._planned_form(plan, shapes, True) == "nf4-packed"
    assert conversion._planned_form(plan, shapes, False) == "nf4"


def test_values_in_4_bits_are_counted_as_values(in_4_bits, tiny):
    plain = sum(each.numel() for each in build_skeleton(open_checkpoint(tiny)).parameters())
    assert parameter_counts(in_4_bits.model) == (0, plain)
