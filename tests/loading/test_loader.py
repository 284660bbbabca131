"""A checkpoint loads whole, in any of its layouts, or is refused by name."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Greedy, Progress, Sample
from gemma3vl_app.hardware import Machine
from gemma3vl_app.loading import load_model, loader
from gemma3vl_app.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def loaded(tiny):
    return load_model(tiny, weights="fp32")


@pytest.fixture
def broken(tiny, tmp_path):
    """A copy of the tiny checkpoint, to be spoilt."""
    folder = tmp_path / "broken"
    shutil.copytree(tiny, folder, copy_function=os.link)
    for path in folder.iterdir():  # what a test writes must not reach the original
        if path.name != "tokenizer.json":
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data)
    return folder


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    kept = {key: tensor.clone() for key, tensor in change(tensors).items()}
    save_file(kept, folder / "model.safetensors")


def refusal(folder, **options):
    with pytest.raises(LoadError) as caught:
        load_model(folder, **options)
    message = str(caught.value)
    assert "/" not in message.replace("owner/name", ""), "a path or a foreign message leaks"
    return message


def same_weights(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- what loads ---


def test_a_hub_checkpoint_loads_with_everything_it_says(loaded, tiny):
    assert type(loaded.model).__name__ == "Gemma3ForConditionalGeneration"
    assert loaded.model.dtype == torch.float32
    assert loaded.config == json.loads((tiny / "config.json").read_text())
    assert loaded.preprocessor["size"] == {"height": 64, "width": 64}
    assert loaded.tokenizer_file == tiny / "tokenizer.json"
    assert loaded.sampling == Sample(temperature=1.0, top_k=64, top_p=0.95)
    assert loaded.stop_ids == {1, 106}
    assert loaded.name == "tiny"
    assert loaded.plan.bytes_by_device["cpu"].weights == 4 * sum(
        p.numel() for p in loaded.model.parameters()
    )
    assert not loaded.model.training


def test_every_weight_of_the_file_is_in_the_model(loaded, tiny):
    model = loaded.model.model
    tensors = load_file(tiny / "model.safetensors")
    where = {
        "language_model.model.": model.language_model,
        "vision_tower.vision_model.": model.vision_tower,
        "multi_modal_projector.": model.multi_modal_projector,
    }
    for key, tensor in tensors.items():
        prefix = next(prefix for prefix in where if key.startswith(prefix))
        assert torch.equal(where[prefix].state_dict()[key.removeprefix(prefix)], tensor.float())


def test_transformers_5_naming_gives_the_same_model(loaded, tmp_path):
    folder = tiny_checkpoint(tmp_path / "t5", layout="transformers5")
    keys = load_file(folder / "model.safetensors")
    assert all(key.startswith("model.") for key in keys)
    assert same_weights(load_model(folder, weights="fp32").model, loaded.model)


def test_what_save_pretrained_writes_gives_the_same_model(loaded, tiny, tmp_path):
    loaded.model.save_pretrained(tmp_path / "saved", max_shard_size="20MB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    shutil.copy(tiny / "tokenizer.json", tmp_path / "saved")
    assert same_weights(load_model(tmp_path / "saved", weights="fp32").model, loaded.model)


def test_a_plain_dump_with_the_tied_output_matrix_gives_the_same_model(loaded, broken):
    dump = {key: tensor.clone() for key, tensor in loaded.model.state_dict().items()}
    assert "lm_head.weight" in dump
    save_file(dump, broken / "model.safetensors")
    assert same_weights(load_model(broken, weights="fp32").model, loaded.model)


def test_transformers_reads_the_hub_layout_the_same_way(loaded, tiny):
    model_class = type(loaded.model)
    reference = model_class.from_pretrained(tiny, dtype=torch.float32)
    assert same_weights(reference, loaded.model)
    buffers = dict(loaded.model.named_buffers())
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in reference.named_buffers())


def test_the_picture_settings_of_a_transformers_5_processor_are_found(broken):
    settings = json.loads((broken / "preprocessor_config.json").read_text())
    (broken / "preprocessor_config.json").unlink()
    (broken / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert load_model(broken, weights="fp32").preprocessor == settings


def test_bf16_is_loaded_when_asked_for(tiny):
    model = load_model(tiny, weights="bf16")
    assert model.model.dtype == torch.bfloat16
    assert "asked" in model.plan.reasons[0]


def test_auto_follows_the_machine(tiny, monkeypatch):
    plain = Machine(cpu_flags=frozenset({"avx2"}), available_bytes=2**40)
    monkeypatch.setattr(loader.hardware, "detect", lambda: plain)
    model = load_model(tiny)
    assert model.model.dtype == torch.float32
    assert "AVX512-BF16" in model.plan.reasons[0]


def test_a_checkpoint_that_does_not_sample_is_greedy(broken):
    edit(broken, "generation_config.json", do_sample=False, eos_token_id=7)
    model = load_model(broken, weights="fp32")
    assert model.sampling == Greedy()
    assert model.stop_ids == {1, 7, 106}


def test_progress_ends_with_ready(tiny):
    heard: list[Progress] = []
    load_model(tiny, weights="fp32", progress=heard.append)
    assert heard[-1].done == heard[-1].total
    assert "ready" in heard[-1].message


# --- what is refused ---


def test_float16_is_refused_with_the_reason(tiny):
    assert "overflow" in refusal(tiny, weights="fp16")


def test_an_unknown_kind_of_weights_lists_those_that_exist(tiny):
    assert "'auto', 'bf16', 'fp32', 'w16', 'int8', 'nf4', 'int4'" in refusal(tiny, weights="int3")


def test_an_unknown_name_lists_what_can_be_loaded():
    message = refusal("no-such-model")
    assert "'no-such-model'" in message and "'demo'" in message and "'270m-pt'" in message


def test_a_folder_without_config_is_no_checkpoint(tmp_path):
    assert "config.json is missing" in refusal(tmp_path)


def test_an_adapter_folder_is_called_one(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "an adapter" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(broken, name):
    (broken / name).unlink()
    assert name in refusal(broken)


def test_pickled_weights_are_not_read(broken):
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    message = refusal(broken)
    assert "pytorch_model.bin" in message and "only safetensors" in message


def test_missing_weights_are_named(broken):
    gone = "language_model.model.layers.0.mlp.up_proj.weight"
    change_weights(broken, lambda w: {k: v for k, v in w.items() if k != gone})
    assert "model.language_model.layers.0.mlp.up_proj.weight" in refusal(broken)


def test_unknown_weights_are_named(broken):
    change_weights(broken, lambda w: {**w, "language_model.model.extra": torch.ones(1)})
    assert "language_model.extra" in refusal(broken)


def test_weights_of_another_shape_are_named(broken):
    name = "multi_modal_projector.mm_soft_emb_norm.weight"
    change_weights(broken, lambda w: {**w, name: torch.ones(3)})
    assert "mm_soft_emb_norm" in refusal(broken)


def test_an_output_matrix_of_its_own_is_refused(broken):
    table = "language_model.model.embed_tokens.weight"
    change_weights(broken, lambda w: {**w, "language_model.lm_head.weight": w[table] + 1})
    assert "lm_head.weight" in refusal(broken)


def test_the_text_class_on_a_vision_checkpoint_is_refused_not_filled_with_noise(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(
        json.dumps({**config["text_config"], "architectures": ["Gemma3ForCausalLM"]})
    )
    assert "Gemma3ForCausalLM" in refusal(broken)


def test_another_architecture_is_refused_by_name(broken):
    edit(broken, "config.json", architectures=["LlamaForCausalLM"])
    assert "LlamaForCausalLM" in refusal(broken)


def test_code_in_the_folder_is_never_run(broken, tmp_path):
    marker = tmp_path / "ran"
    (broken / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\nclass M: pass\n")
    edit(broken, "config.json", auto_map={"AutoModel": "modeling.M", "AutoConfig": "modeling.M"})
    load_model(broken, weights="fp32")
    assert not marker.exists()


def test_other_quantisations_are_refused_by_name(broken):
    edit(broken, "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "gptq" in refusal(broken)


def test_llm_int8_is_refused_with_the_reason(broken):
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    edit(broken, "config.json", quantization_config=settings)
    message = refusal(broken)
    assert "float16" in message and "weights='int8'" in message


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 100_000, "\ufffd"])
def test_a_config_that_is_no_json_object_is_refused(broken, text):
    (broken / "config.json").write_text(text)
    assert "config.json" in refusal(broken)


@pytest.mark.parametrize(
    "change",
    [
        {"text_config": 3},
        {"text_config": {"hidden_size": "many"}},
        {"text_config": {"head_dim": -4}},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(broken, change):
    edit(broken, "config.json", **change)
    refusal(broken)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -1},
        {"top_k": float("inf")},
        {"top_p": 10**400},
        {"temperature": "x" * 100_000},
        {"temperature": "\ud800"},
    ],
    ids=["negative", "infinite", "huge", "long", "no character"],
)
def test_an_impossible_sampling_is_refused(broken, change):
    edit(broken, "generation_config.json", **change)
    message = refusal(broken)
    assert "generation_config.json" in message and len(message) < 400
    message.encode()


@pytest.mark.parametrize("target", [["a"], {"a": 1}, None, "x" * 5000 + ".safetensors", "a\0b"])
def test_an_index_that_makes_no_sense_is_refused(broken, target):
    index = {"weight_map": {"a": target}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(refusal(broken)) < 400


@pytest.mark.parametrize("named", [[["x"]], [{}], "Gemma3", [], [None], ["\ud800" * 5000]])
def test_an_architecture_that_makes_no_sense_is_refused(broken, named):
    edit(broken, "config.json", architectures=named)
    message = refusal(broken)
    assert len(message) < 400
    message.encode()


def test_a_json_file_of_absurd_size_is_not_read(broken):
    with (broken / "generation_config.json").open("r+b") as file:
        file.truncate(2**31)
    assert "too large" in refusal(broken)


@pytest.mark.parametrize("target", ["../tiny.safetensors", "/etc/hostname", "weights.bin"])
def test_an_index_cannot_point_out_of_its_folder_or_to_another_format(broken, target):
    index = {"weight_map": {"a": target}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=r"model\.safetensors\.index\.json"):
        load_model(broken)


@pytest.mark.parametrize(
    "damage",
    [lambda d: d[: len(d) // 2], lambda d: b"\xff" * 8 + d[8:], lambda d: b"", lambda d: d[:3]],
    ids=["half", "endless header", "empty", "three bytes"],
)
def test_a_damaged_weight_file_is_refused(broken, damage):
    path = broken / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert "damaged" in refusal(broken)


def test_weights_that_compute_no_numbers_are_refused(broken):
    """Finite weights that overflow: only computing shows it."""
    name = "language_model.model.norm.weight"
    change_weights(broken, lambda w: {**w, name: torch.full_like(w[name], 3e38)})
    assert "not-a-number" in refusal(broken, weights="fp32")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_named(broken, value):
    name = "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"

    def spoil(weights):
        weights[name][3, 5] = value
        return weights

    change_weights(broken, spoil)
    message = refusal(broken, weights="fp32")
    assert "not numbers" in message and "layers.1.mlp.fc1" in message


def test_weights_that_only_say_padding_are_refused(broken):
    name = "language_model.model.norm.weight"
    change_weights(broken, lambda w: {**w, name: torch.full_like(w[name], -1)})  # 1 + w = 0
    assert "padding" in refusal(broken, weights="fp32")


def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(tiny, monkeypatch):
    small = Machine(available_bytes=2**20)
    monkeypatch.setattr(loader.hardware, "detect", lambda: small)
    message = refusal(tiny, weights="fp32")
    assert "0.4 GiB on cpu in fp32" in message and "'tiny'" in message


def test_a_device_that_is_not_here_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(loader.hardware, "detect", lambda: Machine(available_bytes=2**40))
    assert "no such device" in refusal(tiny, max_memory={"cuda:0": "24GiB"})


def test_a_config_with_absurdly_many_layers_is_refused_at_once(broken):
    text = json.loads((broken / "config.json").read_text())["text_config"]
    edit(broken, "config.json", text_config={**text, "num_hidden_layers": 10**6})
    assert "layers" in refusal(broken)


def test_a_config_without_a_padding_token_loads(broken):
    text = json.loads((broken / "config.json").read_text())["text_config"]
    edit(broken, "config.json", text_config={**text, "pad_token_id": None})
    assert load_model(broken, weights="fp32").model is not None
