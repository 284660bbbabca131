"""Parts and counts from numbers alone are those of transformers' classes on the meta device."""

from functools import cache

import pytest
import torch
from accelerate.utils import check_device_map, compute_module_sizes
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
)

from gemma3vl_app import catalog
from gemma3vl_app.planning import plan
from gemma3vl_app.planning.architecture import architecture
from gemma3vl_app.planning.memory import weight_bytes
from gemma3vl_app.planning.placement import owner

PUBLISHED = {
    "4b": 4_300_079_472,
    "12b": 12_187_325_040,
    "27b": 27_432_406_640,
    "1b": 999_885_952,
    "270m": 268_098_176,
}
SIGLIP = 416_866_032
sizes = pytest.mark.parametrize("size", [*PUBLISHED, "demo"])


@cache
def meta_model(size):
    config = catalog.published_config(size)
    with torch.device("meta"):
        if "vision_config" in config:
            return Gemma3ForConditionalGeneration(Gemma3Config.from_dict(config)).bfloat16()
        return Gemma3ForCausalLM(Gemma3TextConfig.from_dict(config)).bfloat16()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@sizes
def test_the_parameters_are_those_of_the_classes_the_catalog_and_the_publication(size):
    model, parts = meta_model(size), architecture(catalog.published_config(size))
    total = count(model)
    assert total == PUBLISHED.get(size, total)
    assert parts.parameters == total
    assert {e.parameters for e in catalog.MODELS.values() if e.size == size} == {total}
    tower = count(model.model.vision_tower) if parts.vision else 0
    assert tower == (SIGLIP if size in ("4b", "12b", "27b") else tower)
    assert parts.vision_parameters == tower
    assert {e.vision_parameters for e in catalog.MODELS.values() if e.size == size} == {tower}


@sizes
def test_each_part_has_the_parameters_of_its_module(size):
    model, parts = meta_model(size), architecture(catalog.published_config(size))
    for part in (*parts.home, *parts.layers):
        assert part.parameters == count(model.get_submodule(part.name)), part.name


@sizes
def test_the_names_are_modules_and_cover_every_parameter(size):
    model, names = meta_model(size), architecture(catalog.published_config(size)).names
    assert len(set(names)) == len(names)
    for name in names:
        model.get_submodule(name)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, _ in tensors:
        assert sum(name.startswith(f"{each}.") for each in names) == 1, name


@sizes
def test_attention_heads_windows_and_context_are_those_of_the_config_classes(size):
    text, parts = (
        meta_model(size).config.get_text_config(),
        architecture(catalog.published_config(size)),
    )
    assert [window is None for window in parts.windows] == [
        kind == "full_attention" for kind in text.layer_types
    ]
    assert {w for w in parts.windows if w} == {text.sliding_window}
    assert (parts.heads, parts.kv_heads) == (text.num_attention_heads, text.num_key_value_heads)
    assert parts.context_tokens == text.max_position_embeddings
    entries = [each for each in catalog.MODELS.values() if each.size == size]
    assert {each.context_tokens for each in entries} == {parts.context_tokens}


def test_heads_are_those_of_the_checkpoints_not_those_of_megatron_bridges_page():
    heads = {size: architecture(catalog.published_config(size)).heads for size in PUBLISHED}
    assert (heads["4b"], heads["12b"], heads["27b"]) == (8, 16, 32)


@sizes
@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_only_matrices_of_the_layers_are_quantised(size, weights):
    parts = architecture(catalog.published_config(size))
    model = meta_model(size)
    for part in parts.layers:
        linears = [
            module
            for module in model.get_submodule(part.name).modules()
            if isinstance(module, torch.nn.Linear)
        ]
        assert part.matrices == sum(linear.weight.numel() for linear in linears)
        assert part.matrix_rows == sum(linear.out_features for linear in linears)
    for part in parts.home:
        assert part.matrices == 0
        assert weight_bytes(part, weights, "bfloat16") == 2 * part.parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "weights", "max_memory"),
    [
        ("12b", "bf16", {"cuda:0": "24GiB", "cuda:1": "24GiB"}),
        ("27b", "bf16", {f"cuda:{n}": "24GiB" for n in range(4)}),
        ("27b", "nf4", {"cuda:0": "24GiB", "cpu": "64GiB"}),
        ("27b", "nf4", {"cuda:0": "12GiB", "cpu": "64GiB"}),
    ],
)
def test_accelerate_accepts_the_map_and_counts_the_same_bytes(size, weights, max_memory):
    model, found = meta_model(size), plan(f"{size}-it", weights=weights, max_memory=max_memory)
    assert found.fits
    check_device_map(model, dict(found.device_map))  # raises where a module has no place
    sizes = compute_module_sizes(model)
    measured = dict.fromkeys(found.bytes_by_device, 0)
    for name in architecture(catalog.published_config(size)).names:
        if name != "lm_head":  # the embeddings' own matrix
            measured[owner(name, found.device_map)] += sizes.get(name, 0)
    for name, _ in model.named_buffers():  # tables of positions: no weights
        measured[owner(name, found.device_map)] -= sizes[name]
    if weights == "nf4":  # accelerate counted two bytes: now half a byte, and a float32 for 64
        for name, matrix in model.named_parameters():
            if ".language_model.layers." in name and name.endswith("proj.weight"):
                numbers = matrix.numel()
                measured[owner(name, found.device_map)] -= (
                    2 * numbers - numbers // 2 - numbers // 16
                )
    assert measured == {device: held.weights for device, held in found.bytes_by_device.items()}
    for device, held in found.bytes_by_device.items():
        assert held.total <= found.limits_by_device[device]
