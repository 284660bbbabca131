"""An adapter folded into its model, and written as a model of its own."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma3vl_app.conversion.converting import convert
from gemma3vl_app.errors import ConversionError, LoadError
from gemma3vl_app.loading import load_model
from gemma3vl_app.testing import tiny_checkpoint
from tests.loading.peft_adapters import KINDS, save_adapter


def merge(base, adapter, out, **options):
    return convert(base, out, "merged", adapter=adapter, **options)


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """A random LoRA of peft's own, by another writer than ours."""
    return save_adapter(tiny, tmp_path_factory.mktemp("adapters") / "random", **KINDS["rslora"])


def test_the_merged_model_has_the_hubs_names_files_and_shards(tiny, adapter, tmp_path):
    out = merge(tiny, adapter, tmp_path / "merged", shard_bytes=100_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    stored = {}
    for file in sorted(out.glob("*.safetensors")):
        stored |= {key: (file.name, tensor) for key, tensor in load_file(file).items()}
    assert index["weight_map"] == {key: file for key, (file, _) in stored.items()}
    assert len({*index["weight_map"].values()}) > 3
    base = load_file(tiny / "model.safetensors")
    assert stored.keys() == base.keys()
    name = "language_model.model.norm.weight"
    assert torch.equal(stored[name][1], base[name])
    assert {tensor.dtype for _, tensor in stored.values()} == {torch.bfloat16}
    assert index["metadata"]["total_size"] == sum(t.nbytes for _, t in stored.values())
    for name in ("config.json", "generation_config.json", "preprocessor_config.json"):
        assert json.loads((out / name).read_text())
    assert (out / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    loaded = load_model(out, weights="bf16")
    assert loaded.sampling == load_model(tiny, weights="bf16").sampling


def test_merging_equals_pefts_own(tiny, adapter, tmp_path):
    from peft import PeftModel

    out = merge(tiny, adapter, tmp_path / "merged", precision="fp32")
    theirs = PeftModel.from_pretrained(load_model(tiny, weights="fp32").model, str(adapter))
    theirs = theirs.merge_and_unload().state_dict()
    for name, ours in load_model(out, weights="fp32").model.state_dict().items():
        assert torch.allclose(ours, theirs[name], atol=1e-5), name


def test_an_adapter_of_the_text_class_merges_into_the_vision_model(tiny, adapter, tmp_path):
    text_only = tmp_path / "text-adapter"
    shutil.copytree(adapter, text_only)
    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {key.replace("language_model.", ""): each for key, each in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, text_only / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    patterns = {k.replace("language_model.", ""): v for k, v in config["rank_pattern"].items()}
    config["rank_pattern"] = patterns
    (text_only / "adapter_config.json").write_text(json.dumps(config))
    one = merge(tiny, adapter, tmp_path / "one") / "model.safetensors"
    other = merge(tiny, text_only, tmp_path / "other") / "model.safetensors"
    assert one.read_bytes() == other.read_bytes()


def test_an_adapter_of_another_model_is_refused_and_leaves_nothing(
    tmp_path_factory, adapter, tmp_path
):
    small = tiny_checkpoint(tmp_path_factory.mktemp("small"), layers=2)
    with pytest.raises(LoadError, match=r"layers\.\d\.\S+', which is no linear layer of this"):
        merge(small, adapter, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_merge_without_an_adapter_is_refused(tiny, tmp_path):
    with pytest.raises(ConversionError, match="Name the adapter's folder"):
        convert(tiny, tmp_path / "out", "merged")
    assert not [*tmp_path.iterdir()]


def test_a_base_in_4_bits_is_merged_in_numbers(tiny, adapter, tmp_path):
    from gemma3vl_app.loading import nf4

    tensors = load_file(tiny / "model.safetensors")
    quantised = {}
    for key, tensor in tensors.items():
        if "layers" in key and "language" in key and key.endswith("proj.weight"):
            quantised |= {f"{key}{suffix}": part for suffix, part in nf4.quantise(tensor).items()}
        else:
            quantised[key] = tensor
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    save_file(quantised, base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"load_in_4bit": True, "quant_method": "bitsandbytes"}
    (base / "config.json").write_text(json.dumps(config))
    out = merge(base, adapter, tmp_path / "merged")
    plain = merge(tiny, adapter, tmp_path / "plain")
    ours, exact = (load_file(each / "model.safetensors") for each in (out, plain))
    assert ours.keys() == exact.keys()
    for key in ours:
        assert (ours[key].float() - exact[key].float()).norm() <= 0.2 * exact[key].float().norm()
    load_model(out, weights="bf16")
