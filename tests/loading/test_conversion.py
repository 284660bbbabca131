"""Weights come in the planned form: quantised once, layer by layer, and mapped from the cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress
from gemma3vl_app.hardware import Machine
from gemma3vl_app.loading import int4, int8, load_model, loader, nf4
from gemma3vl_app.loading.cache import CACHE_VARIABLE, cached_folders
from gemma3vl_app.testing import tiny_checkpoint

IDS = torch.tensor([[2, 105, 2364, 107, 5000, 600, 70, 106]])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of its own for this file, so that first loads are first loads."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="module")
def plain(tiny, cache):
    return load_model(tiny, weights="fp32")


def linear_layers(model, kind):
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


@torch.inference_mode()
def logits(model):
    return model(input_ids=IDS).logits.float()


def reference(model, rounded):
    """A copy of `model` whose text matrices went through `rounded`."""
    other = type(model)(model.config).to(model.dtype)
    weights = {
        key: rounded(value) if "layers" in key and "proj" in key and "tower" not in key else value
        for key, value in model.state_dict().items()
    }
    other.load_state_dict(weights)
    return other.eval()


@pytest.mark.parametrize(
    ("weights", "kind", "rounded"),
    [
        ("nf4", bitsandbytes.nn.Linear4bit, lambda w: nf4.dequantise(nf4.quantise(w))),
        (
            "int8",
            int8.Int8Linear,
            lambda w: (p := int8.quantise(w))[""].float() * p[int8.SCALE][:, None],
        ),
        (
            "int4",
            int4.Int4Linear,
            lambda w: int4.dequantise(int4.quantise(w), torch.float32),
        ),
    ],
)
def test_only_the_text_layers_matrices_are_quantised_and_compute_rightly(
    tiny, cache, plain, weights, kind, rounded, monkeypatch
):
    machine = Machine(cpu_flags=frozenset({"avx2"}), available_bytes=2**40)
    monkeypatch.setattr(loader.hardware, "detect", lambda: machine)  # fp32: rounding cannot hide
    loaded = load_model(tiny, weights=weights, fast_paths=False)
    names = linear_layers(loaded.model, kind)
    assert len(names) == 6 * 7
    assert all(name.startswith("model.language_model.layers.") for name in names)
    assert loaded.plan.weights == weights
    expected = logits(reference(plain.model, rounded))
    if weights != "nf4" or nf4.packs_for_cpu():  # kernels that may round to bf16
        distance = (logits(loaded.model) - expected).norm()
        assert distance < 0.5 * (expected - logits(plain.model)).norm()
    else:
        assert torch.allclose(logits(loaded.model), expected, atol=1e-3)


@pytest.mark.parametrize("weights", ["int8", "nf4", "int4"])
def test_embeddings_and_output_matrix_are_one_table_of_8_bits(tiny, cache, weights):
    loaded = load_model(tiny, weights=weights)
    exact = load_model(tiny, weights=weights, fast_paths=False)
    table, head = loaded.model.get_input_embeddings(), loaded.model.lm_head
    assert loaded.plan.table == "int8" and exact.plan.table == ""
    assert table.weight.dtype == torch.int8
    assert table.weight.data_ptr() == head.weight.data_ptr()
    expected = exact.model.get_input_embeddings().weight.float()
    distance = (table(IDS).float() - expected[IDS] * table.embed_scale).norm()
    assert distance < 0.02 * (expected[IDS] * table.embed_scale).norm()
    change = (logits(loaded.model) - logits(exact.model)).norm()
    assert 0 < change < 0.1 * logits(exact.model).norm()


def test_for_training_the_table_stays_as_it_is(tiny, cache):
    assert load_model(tiny, weights="nf4", for_training=True).plan.table == ""


def test_the_second_load_reads_the_first_ones_files(tiny, cache):
    load_model(tiny, weights="nf4")
    heard: list[Progress] = []
    before = {folder.name for folder in cached_folders()}
    load_model(tiny, weights="nf4", progress=heard.append)
    assert {folder.name for folder in cached_folders()} == before
    assert not [step for step in heard if step.stage == "convert"]


def test_quantised_weights_are_memory_maps(tiny, cache):
    model = load_model(tiny, weights="nf4").model
    lines = Path("/proc/self/maps").read_text().splitlines()
    maps = [line for line in lines if line.endswith(".safetensors")]
    spans = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in maps]
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            address = module.weight.data.data_ptr()
            assert any(start <= address < stop for start, stop in spans)


def test_weights_that_change_are_quantised_anew(tmp_path, cache):
    folder = tiny_checkpoint(tmp_path / "changing", seed=1)
    first = logits(load_model(folder, weights="int8").model)
    tiny_checkpoint(folder, seed=2)
    assert not torch.equal(first, logits(load_model(folder, weights="int8").model))


def test_a_load_that_is_killed_while_quantising_leaves_nothing_half_done(tmp_path, cache):
    folder = tiny_checkpoint(tmp_path / "killed", seed=3)
    script = (
        "import os, sys\n"
        "from gemma3vl_app.loading import load_model\n"
        "def watch(step):\n"
        "    if step.stage == 'convert' and step.done == 3: os._exit(9)\n"
        "load_model(sys.argv[1], weights='nf4', progress=watch)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    assert killed.returncode == 9
    loaded = load_model(folder, weights="nf4")
    assert len(linear_layers(loaded.model, bitsandbytes.nn.Linear4bit)) == 6 * 7


def test_a_full_disk_is_said_before_anything_is_quantised(tmp_path, cache, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "large", seed=4)
    usage = shutil._ntuple_diskusage(10, 10, 0)
    monkeypatch.setattr("gemma3vl_app.loading.cache.shutil.disk_usage", lambda path: usage)
    with pytest.raises(LoadError, match="disk space"):
        load_model(folder, weights="nf4")


# --- repositories that were quantised by others, with lists of skipped names from before ---


def quantised_repository(tiny, folder, *, with_tower, double=False):
    """What `save_pretrained` of an older transformers left: 4-bit parts, old names, old list."""
    shutil.copytree(tiny, folder, copy_function=os.link)
    weights = {}
    for key, weight in load_file(tiny / "model.safetensors").items():
        in_layer = "layers." in key and weight.dim() == 2 and key.endswith("weight")
        if not in_layer or ("vision" in key and not with_tower):
            weights[key] = weight
            continue
        data, state = bitsandbytes.functional.quantize_4bit(
            weight, blocksize=64, compress_statistics=double, quant_type="nf4"
        )
        weights[key] = data
        weights |= {f"{key}.{name}": part for name, part in state.as_dict(packed=True).items()}
    (folder / "model.safetensors").unlink()
    save_file({k: w.contiguous() for k, w in weights.items()}, folder / "model.safetensors")
    config = json.loads((tiny / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double,
        "llm_int8_skip_modules": ["lm_head", "vision_tower", "language_model.model.layers.0.mlp"],
    }
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("with_tower", [False, True], ids=["tower left out", "tower quantised too"])
@pytest.mark.parametrize("double", [False, True], ids=["", "double quantisation"])
def test_a_repository_with_an_old_list_of_skipped_modules_loads(
    tiny, tmp_path, cache, with_tower, double
):
    folder = quantised_repository(tiny, tmp_path / "old", with_tower=with_tower, double=double)
    loaded = load_model(folder)
    assert loaded.plan.weights == "nf4"
    names = linear_layers(loaded.model, bitsandbytes.nn.Linear4bit)
    assert len(names) == 6 * 7 and not any("tower" in name for name in names)
    ours = logits(load_model(tiny, weights="nf4").model)
    distance = (logits(loaded.model) - ours).norm() / ours.norm()
    assert distance < (0.05 if double else 1e-5)
    # The tower computes, whatever it was stored in.
    pixels = torch.zeros(1, 3, 64, 64, dtype=loaded.model.dtype)
    with torch.inference_mode():
        features = loaded.model.get_image_features(pixels)
    assert torch.isfinite(torch.as_tensor(features.pooler_output)).all()


def test_a_4_bit_repository_can_be_computed_in_full_precision(tiny, tmp_path, cache):
    folder = quantised_repository(tiny, tmp_path / "old", with_tower=True)
    model = load_model(folder, weights="fp32").model
    assert not linear_layers(model, bitsandbytes.nn.Linear4bit)
    ours = load_model(tiny, weights="nf4").model
    assert (logits(model) - logits(ours)).norm() < 0.05 * logits(ours).norm()


@pytest.mark.parametrize("part", [".absmax", ".quant_map"])
def test_4_bit_weights_with_too_few_scales_are_refused(tiny, tmp_path, cache, part):
    folder = quantised_repository(tiny, tmp_path / "old", with_tower=False)
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith(part))
    weights[name] = weights[name][:-1].clone()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(LoadError, match="scales do not fit"):
        load_model(folder)


def test_matrices_with_a_bias_are_not_quantised(tiny, tmp_path, cache):
    folder = tmp_path / "biased"
    shutil.copytree(tiny, folder, copy_function=os.link)
    config = json.loads((tiny / "config.json").read_text())
    config["text_config"]["attention_bias"] = True
    weights = load_file(tiny / "model.safetensors")
    for key in [key for key in weights if "language_model" in key and "self_attn" in key]:
        if key.endswith("_proj.weight"):
            weights[key.replace("weight", "bias")] = torch.ones(weights[key].shape[0]).bfloat16()
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    model = load_model(folder, weights="int8", fast_paths=False).model
    assert len(linear_layers(model, int8.Int8Linear)) == 6 * 3
