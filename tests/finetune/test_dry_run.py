"""What a dry run says, held against real tensors of a tiny model, and against itself."""

import dataclasses

import pytest
import torch

from gemma3vl_app import catalog
from gemma3vl_app.errors import RecipeError
from gemma3vl_app.finetune import dry_run as module
from gemma3vl_app.finetune.dry_run import dry_run, gpu_bytes_of
from gemma3vl_app.finetune.methods import put_method, trainable
from gemma3vl_app.finetune.recipe import Recipe, read_recipe
from gemma3vl_app.loading import load_model

TOKENS, PICTURES = 200, 2  # no size of a weight
WHOLE = {"train_vision_tower": True, "train_projector": True}
METHODS = {
    "sft": {"method": "sft", **WHOLE},
    "projector": {"method": "sft", "train_language_model": False, "train_projector": True},
    "lora": {"method": "lora", "train_vision_tower": True, "lora_rank": 4},
    "dora": {"method": "dora"},
}


@pytest.fixture(scope="module", autouse=True)
def parameters_are_counted_once():
    """Building a 27B takes a second even without memory; the tests ask for it again and again."""
    counted = {}

    def count(recipe):
        fields = ("model", "method", "lora_rank", *WHOLE, "train_language_model")
        key = tuple(getattr(recipe, name) for name in fields)
        if key not in counted:
            counted[key] = real(recipe)
        return counted[key]

    real = module.count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "count", count)
        yield


def tiny_recipe(tiny, **fields) -> Recipe:
    settings = {"precision": "fp32", "max_tokens": TOKENS, "global_batch": 1}
    return Recipe(**{"model": str(tiny), "gradient_checkpointing": False, **settings, **fields})


def real_model(recipe: Recipe):
    loaded = load_model(recipe.model, weights=recipe.precision, for_training=True)
    return put_method(loaded.model, recipe).train()


def conversation(tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """A batch of one conversation with pictures; their tokens are 16 each."""
    ids, types = torch.full((1, tokens), 5), torch.zeros(1, tokens, dtype=torch.long)
    for start in range(2, 2 + 20 * PICTURES, 20):
        ids[:, start : start + 16], types[:, start : start + 16] = 262_144, 1
    pictures = torch.randn(PICTURES, 3, 64, 64)
    return {"input_ids": ids, "token_type_ids": types, "pixel_values": pictures}


def sizes(tensors) -> int:
    return sum(each.nbytes for each in tensors)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bytes_are_those_of_a_real_step_of_adamw(tiny, method, precision):
    recipe = tiny_recipe(tiny, precision=precision, **METHODS[method])
    model = real_model(recipe)
    learning = list(trainable(model).values())
    optimizer = torch.optim.AdamW(learning)
    for parameter in learning:  # as a backward pass leaves them
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for each in optimizer.state.values() for value in each.values()]
    found = dry_run(recipe)
    copies = sum(map(torch.Tensor.numel, learning)) * 2 if precision == "bf16" else 0
    assert found.trained == sum(map(torch.Tensor.numel, learning))
    assert found.trained_tensors == len(learning)
    base = {id(each): each for name, each in model.named_parameters() if "lora_" not in name}
    adapter = {id(each): each for name, each in model.named_parameters() if "lora_" in name}
    assert found.per_gpu.weights == sizes([*base.values(), *adapter.values()]) + copies
    assert found.per_gpu.gradients == sizes(each.grad for each in learning)
    assert found.per_gpu.optimizer == sizes(state)


@pytest.mark.parametrize("method", ["sft", "lora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_about_those_that_autograd_keeps(tiny, method, precision):
    recipe = tiny_recipe(tiny, precision=precision, **METHODS[method])
    model = real_model(recipe)
    known = {each.untyped_storage().data_ptr() for each in model.parameters()}
    shapes = {tuple(each.shape) for each in model.parameters() if each.dim() > 1}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        # Weights, and autocast's copies of them, count as weights.
        if place not in known and tuple(tensor.shape) not in shapes:
            kept[place] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        hidden = model.get_base_model() if method == "lora" else model
        hidden.model(**conversation(), use_cache=False)
    real = sum(each.untyped_storage().nbytes() for each in kept.values())
    counts = module.count(recipe)
    dtype = "float32" if precision == "fp32" else "bfloat16"
    estimate = gpu_bytes_of(counts, recipe, dtype, PICTURES).activations
    assert 0.9 < estimate / real < 1.1


def test_checkpointing_keeps_what_goes_into_each_layer_and_one_layer(tiny):
    recipe = tiny_recipe(tiny, method="lora")
    model, counts = module.count(recipe).model, module.count(recipe)
    plain = gpu_bytes_of(counts, recipe, "float32", 0).activations
    recipe = dataclasses.replace(recipe, gradient_checkpointing=True)
    checkpointed = gpu_bytes_of(counts, recipe, "float32", 0).activations
    layer = module.layer_bytes(model, 4, norms_learn=False) * TOKENS + 4 * TOKENS**2
    masks, between = 2 * TOKENS**2, 6 * model.hidden * 4 * TOKENS
    assert plain == masks + 6 * layer
    assert checkpointed == masks + between + layer


def test_logits_are_counted_for_the_whole_vocabulary():
    found = dry_run(read_recipe("4b-lora"))
    assert found.per_gpu.logits == 4096 * 262_208 * (2 + 4 + 4)


@pytest.mark.parametrize("size", ["4b", "12b", "27b"])
def test_parameters_are_those_of_the_released_models(size):
    entry = catalog.MODELS[f"{size}-it"]
    found = dry_run(read_recipe(f"{size}-sft"))
    assert (found.parameters, found.trained) == (entry.parameters, entry.parameters)
    assert found.tokens_per_step == 131_072
    assert found.fits
    assert found.gpus_needed["none"] is None  # 16 bytes a parameter are more than one GPU has
    assert found.gpus_needed["fsdp"] <= found.recipe.gpus


def test_weights_of_qlora_are_in_four_bits_and_no_gpu_shares_them():
    lora, qlora = dry_run(read_recipe("27b-lora")), dry_run(read_recipe("27b-qlora"))
    assert (lora.trained, lora.per_gpu.optimizer) == (qlora.trained, qlora.per_gpu.optimizer)
    assert 0.3 < qlora.per_gpu.weights / lora.per_gpu.weights < 0.4
    assert qlora.gpus_needed["fsdp"] is None


def test_sharing_out_divides_what_is_shared():
    recipe = read_recipe("12b-sft")
    counts = module.count(recipe)
    eight, sixteen = (
        gpu_bytes_of(counts, dataclasses.replace(recipe, gpus=gpus), "bfloat16", 1)
        for gpus in (8, 16)
    )
    assert eight.optimizer == pytest.approx(2 * sixteen.optimizer, rel=1e-6)
    parts = counts.model
    whole = sum(part.parameters for part in parts.home) + 2 * parts.layers[0].parameters
    assert eight.weights - 2 * whole == pytest.approx(2 * (sixteen.weights - 2 * whole), rel=1e-6)
    assert eight.activations == sixteen.activations


def test_the_fewest_gpus_hold_it_and_half_of_them_do_not():
    recipe = read_recipe("27b-sft")
    found = dry_run(recipe)
    fewest = found.gpus_needed["fsdp"]
    assert dry_run(dataclasses.replace(recipe, gpus=fewest)).fits
    assert not dry_run(dataclasses.replace(recipe, gpus=fewest // 2)).fits


def test_ddp_holds_gradients_twice(tiny):
    recipe = tiny_recipe(tiny, global_batch=2)
    one = dry_run(recipe).per_gpu
    two = dry_run(dataclasses.replace(recipe, gpus=2)).per_gpu
    assert two.gradients == 2 * one.gradients
    assert two.total - one.total == one.gradients


def test_steps_are_counted_in_tokens_and_batches():
    found = dry_run(read_recipe("4b-lora", ["gpus=2", "micro_batch=4", "max_tokens=1000"]))
    assert (found.tokens_per_step, found.micro_batches) == (32_000, 4)


def test_a_text_model_can_be_weighed():
    found = dry_run(read_recipe("4b-lora", ["model=1b-it", "gpus=1"]))
    assert found.parameters - found.trained == catalog.MODELS["1b-it"].parameters
    assert found.fits


def test_memory_beside_the_gpus_and_disk_are_counted():
    sft, lora = dry_run(read_recipe("4b-sft")), dry_run(read_recipe("4b-lora"))
    # Weights in fp32 and AdamW's two numbers, in three checkpoints; the model, and the result.
    assert sft.disk_bytes == 3 * 12 * sft.trained + 2 * 2 * sft.parameters
    assert lora.disk_bytes == 3 * 12 * lora.trained + 2 * 4_300_079_472 + 4 * lora.trained
    # Shared out, the first process reads all of it; 2 GiB are a shard of the result.
    assert sft.host_bytes == 4 * sft.trained + (2 << 30)
    assert lora.host_bytes == 4 * lora.trained


def test_a_recipe_that_makes_no_sense_is_not_weighed():
    with pytest.raises(RecipeError, match="global_batch"):
        dry_run(Recipe(gpus=3))
