"""Train -> load as an adapter -> merge -> the hub's layout -> load: the same answers all along."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gemma3vl_app as gv
from gemma3vl_app.errors import LoadError, TrainingError
from gemma3vl_app.finetune.collate import Collator, answer_loss
from gemma3vl_app.finetune.merge import merge
from gemma3vl_app.finetune.methods import put_method
from gemma3vl_app.finetune.sources import read_jsonl
from gemma3vl_app.finetune.train import finetune
from gemma3vl_app.finetune.trained_files import whole_tensors, write_adapter
from gemma3vl_app.loading import load_model
from tests.finetune.conftest import but
from tests.loading.peft_adapters import KINDS, save_adapter


def asked(pictures):
    return gv.Conversation().user(gv.Picture.open(pictures / "pink.png"), "What colour?")


def scores(backend, pictures, adapter=None):
    tokens = backend.score(asked(pictures), "It is pink, I think.", adapter=adapter)
    return [token.logprob for token in tokens]


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_trained_adapter_answers_the_same_loaded_and_merged(
    method, recipe, small, pictures, tokenizer, format
):
    loaded = load_model(small, weights="fp32", for_training=True)
    trained = but(recipe, method=method, train_vision_tower=True, max_steps=3)
    adapter = finetune(trained, model=loaded)
    merged = merge(small, adapter, Path(recipe.out) / "merged", precision="fp32")
    with gv.load(small, weights="fp32", adapters={"mine": adapter}) as backend:
        plain, with_adapter = scores(backend, pictures), scores(backend, pictures, "mine")
    with gv.load(merged, weights="fp32") as backend:
        after_merge = scores(backend, pictures)
    assert max(abs(a - b) for a, b in zip(plain, with_adapter, strict=True)) > 0.1
    assert after_merge == pytest.approx(with_adapter, abs=1e-4)
    # The very model that was trained, and the merged one, by transformers' own forward pass
    batch = Collator(tokenizer, format)(read_jsonl(Path(recipe.data)))
    loaded.model.eval()
    with torch.no_grad():
        as_trained = answer_loss(loaded.model, batch).item()
        as_merged = answer_loss(load_model(merged, weights="fp32").model, batch).item()
    assert as_merged == pytest.approx(as_trained, abs=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_is_written_as_peft_writes_it(method, recipe, small, tmp_path):
    model = put_method(load_model(small, weights="fp32").model, but(recipe, method=method))
    model.save_pretrained(tmp_path / "peft")
    (tmp_path / "ours").mkdir()
    write_adapter(tmp_path / "ours", model, dict(whole_tensors(model, only_trained=True)), "demo")
    ours, theirs = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "peft")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


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


def test_an_adapter_of_another_model_is_refused_and_leaves_nothing(small, adapter, tmp_path):
    with pytest.raises(LoadError, match=r"layers\.\d\.\S+', which is no linear layer of this"):
        merge(small, adapter, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_merge_that_fails_half_way_leaves_nothing(tiny, adapter, tmp_path):
    def stop(step):
        if step.stage == "merge" and step.done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(tiny, adapter, tmp_path / "out", shard_bytes=1000, progress=stop)
    assert not [*tmp_path.iterdir()]


def test_no_folder_is_overwritten(tiny, adapter, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(TrainingError, match="'out' is there already"):
        merge(tiny, adapter, tmp_path / "out")


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
