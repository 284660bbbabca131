"""Adapter folders: every layout of names is read, every bad folder refused by name and at once."""

import json
import random
import shutil
import time
import timeit

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM

from gemma3vl_app.errors import EngineError, LoadError
from gemma3vl_app.loading import load_model
from gemma3vl_app.loading.adapters import Adapters
from gemma3vl_app.loading.assembly import arithmetic_of
from gemma3vl_app.loading.cache import CACHE_VARIABLE
from tests.loading.peft_adapters import KINDS, TEXT, save_adapter

IDS = torch.tensor([[2, 105, 2364, 107, 3689, 563, 672, 236881, 106, 107]])
PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    at = tmp_path_factory.mktemp("adapters")
    return {kind: save_adapter(tiny, at / kind, **settings) for kind, settings in KINDS.items()}


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny, weights="fp32").model


@pytest.fixture
def adapters(model):
    """Adapters over the module's model, taken out again afterwards."""
    made = Adapters(model)
    yield made
    for name in made.names:
        made.remove(name)


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the plain adapter, to be damaged."""
    return shutil.copytree(folders["plain"], tmp_path / "adapter")


@torch.inference_mode()
def logits(model, ids=IDS):
    return model(input_ids=ids).logits[0]


def rename(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file({change(key): tensor for key, tensor in tensors.items()}, folder / WEIGHTS)


def set_config(folder, **values):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))


# --- what is computed ---


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tower"])
def test_logits_equal_pefts(tiny, adapters, model, folders, kind):
    peft_model = PeftModel.from_pretrained(
        load_model(tiny, weights="fp32").model, str(folders[kind])
    ).eval()
    plain = logits(model)
    adapters.add("mine", folders[kind])
    with adapters.active("mine"):
        assert (logits(model) - logits(peft_model)).abs().max() < 1e-4
        assert (logits(model) - plain).abs().max() > 0.1
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("weights", ["bf16", "w16", "int8", "nf4", "int4"])
@pytest.mark.parametrize("kind", ["plain", "dora"])
def test_adapters_over_other_precisions_change_logits_as_in_full(
    tiny, adapters, model, folders, weights, kind, tmp_path, monkeypatch
):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    other = load_model(tiny, weights=weights).model
    theirs = Adapters(other)
    for each in (adapters, theirs):
        each.add("mine", folders[kind])
    base_error = (logits(model) - logits(other).float()).abs().mean()
    with adapters.active("mine"), theirs.active("mine"):
        adapted, full = logits(other).float(), logits(model)
    error = (full - adapted).abs().mean()
    assert error < 2 * base_error + 0.02
    assert (full - logits(model)).abs().mean() > 2 * error
    layer = other.model.language_model.layers[0].self_attn.q_proj
    assert layer.lora_A[theirs.key("mine")].weight.dtype == arithmetic_of(other)


# --- names of layers ---


def old_layout(key):
    """transformers 4 before 4.52, and unsloth of that time."""
    inner = key.removeprefix(PREFIX)
    inner = inner.replace("model.language_model.", "language_model.model.")
    inner = inner.replace("model.vision_tower.", "vision_tower.vision_model.")
    return PREFIX + inner


def named_layout(key):
    return key.replace(".weight", ".default.weight")


def text_layout(key):
    return key.replace("model.language_model.layers", "model.layers")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (old_layout, "dora"),
        (old_layout, "tower"),
        (named_layout, "dora"),
        (named_layout, "tower"),
        (text_layout, "dora"),
    ],
)
def test_keys_of_other_versions_give_the_same_adapter(
    adapters, model, folders, tmp_path, change, kind
):
    changed = shutil.copytree(folders[kind], tmp_path / "changed")
    rename(changed, change)
    adapters.add("new", folders[kind])
    adapters.add("old", changed)
    module = "model.vision_tower.encoder.layers.0.self_attn.q_proj"
    layer = model.get_submodule(module if kind == "tower" else f"{TEXT_LAYER}.self_attn.q_proj")
    keys = [adapters.key(name) for name in ("new", "old")]
    for part in (layer.lora_A, layer.lora_B):
        assert torch.equal(part[keys[0]].weight, part[keys[1]].weight)
    assert torch.equal(layer.lora_variant[keys[0]].factor, layer.lora_variant[keys[1]].factor)


TEXT_LAYER = "model.language_model.layers.1"


def test_patterns_written_in_old_names_count_for_old_keys(adapters, model, folder):
    rename(folder, old_layout)
    set_config(folder, alpha_pattern={"language_model.model.layers.1.self_attn.q_proj": 12})
    adapters.add("old", folder)
    scaling = model.get_submodule(f"{TEXT_LAYER}.self_attn.q_proj").scaling
    assert scaling[adapters.key("old")] == 12 / 4
    assert model.get_submodule(f"{TEXT_LAYER}.self_attn.k_proj").scaling[adapters.key("old")] == 1


@pytest.fixture(scope="module")
def text_model(model):
    """The language model of the tiny checkpoint as the text-only class."""
    text = Gemma3ForCausalLM(model.config.text_config).eval()
    text.model.load_state_dict(model.model.language_model.state_dict())
    text.lm_head.weight = text.model.embed_tokens.weight
    return text


def test_an_adapter_of_the_vision_class_fits_the_text_class(text_model, adapters, model, folders):
    theirs = Adapters(text_model)
    for each in (adapters, theirs):
        each.add("mine", folders["plain"])
    with adapters.active("mine"), theirs.active("mine"):
        assert (logits(text_model) - logits(model)).abs().max() < 1e-4


def test_an_adapter_of_the_tower_does_not_fit_the_text_class(text_model, folders):
    with pytest.raises(LoadError, match=r"vision tower .* this model reads no pictures"):
        Adapters(text_model).add("mine", folders["tower"])


# --- names, coming and going ---


@pytest.mark.parametrize("name", ["base", "", "../up", "a b", "a" * 65, "ü", ".hidden", None, 3])
def test_a_name_that_could_confuse_is_refused(adapters, folders, name):
    with pytest.raises(LoadError, match="cannot be called"):
        adapters.add(name, folders["plain"])


def test_names_are_given_once_and_can_be_given_again_after_removal(adapters, folders):
    adapters.add("v1.2_x-y", folders["plain"])
    with pytest.raises(LoadError, match="already"):
        adapters.add("v1.2_x-y", folders["dora"])
    first = adapters.key("v1.2_x-y")
    adapters.remove("v1.2_x-y")
    with pytest.raises(EngineError, match="removed"):
        adapters.use(first)
    adapters.add("v1.2_x-y", folders["plain"])
    assert adapters.key("v1.2_x-y") != first
    with pytest.raises(LoadError, match="no adapter"):
        adapters.remove("other")


def test_a_failed_injection_leaves_the_model_as_it_was(adapters, model, folders, monkeypatch):
    before = {name: type(module) for name, module in model.named_modules()}
    plain = logits(model)
    monkeypatch.setattr("gemma3vl_app.loading.dora.Dora", lambda factor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        adapters.add("mine", folders["dora"])
    monkeypatch.undo()
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert adapters.names == ()
    assert torch.equal(logits(model), plain)


def test_the_file_may_be_overwritten_after_loading(adapters, model, folder):
    adapters.add("mine", folder)
    with adapters.active("mine"):
        before = logits(model)
        size = (folder / WEIGHTS).stat().st_size
        (folder / WEIGHTS).write_bytes(bytes(size))
        assert torch.equal(logits(model), before)


def test_switching_costs_nothing_and_the_wrapping_little(adapters, model, folders, capsys):
    plain_sec = min(timeit.repeat(lambda: logits(model), number=3, repeat=3)) / 3
    adapters.add("a", folders["plain"])
    adapters.add("b", folders["dora"])
    keys = [adapters.key("a"), adapters.key("b"), None]
    switch_sec = min(timeit.repeat(lambda: [adapters.use(k) for k in keys], number=500)) / 1500
    wrapped_sec = min(timeit.repeat(lambda: logits(model), number=3, repeat=3)) / 3
    with capsys.disabled():
        print(
            f"\nswitch: {switch_sec * 1e6:.2f} us; a pass of the base: {plain_sec * 1e3:.2f} ms, "
            f"with adapters loaded {wrapped_sec * 1e3:.2f} ms"
        )
    assert switch_sec < 20e-6


# --- folders that are refused ---


def test_a_folder_of_another_size_is_refused_with_layer_and_shapes(text_model, folders):
    model = Gemma3ForCausalLM(text_model.config)
    model.model.layers[0].self_attn.q_proj = torch.nn.Linear(32, 64, bias=False)
    with pytest.raises(LoadError, match=r"another size.*0\.self_attn\.q_proj.*64 x 64.*64 x 32"):
        Adapters(model).add("mine", folders["plain"])


def test_an_adapter_of_a_deeper_model_is_refused(adapters, folder):
    rename(folder, lambda key: key.replace("layers.5.", "layers.50."))
    with pytest.raises(LoadError, match=r"layers\.50\..*does not have. Load the model it was"):
        adapters.add("mine", folder)


def no_folder(folder):
    shutil.rmtree(folder)


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("text")


def no_config(folder):
    (folder / CONFIG).unlink()


def pickle_only(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def no_weights(folder):
    (folder / WEIGHTS).unlink()


def pickle_in_disguise(folder):
    torch.save({"a": torch.zeros(3)}, folder / WEIGHTS)


def cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def huge_config(folder):
    (folder / CONFIG).write_bytes(b" " * (2 << 20))


def not_numbers(folder):
    tensors = load_file(folder / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def half_a_layer(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(next(key for key in tensors if "lora_B" in key))
    save_file(tensors, folder / WEIGHTS)


def whole_numbers(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file({key: tensor.int() for key, tensor in tensors.items()}, folder / WEIGHTS)


def empty(folder):
    save_file({}, folder / WEIGHTS)


def embeddings(folder):
    rename(
        folder, lambda key: key.replace("layers.0.mlp.up_proj.lora_A.weight", "x.lora_embedding_A")
    )


def output_matrix(folder):
    tensors = {
        f"{PREFIX}lm_head.lora_A.weight": torch.zeros(4, 64),
        f"{PREFIX}lm_head.lora_B.weight": torch.zeros(262_208, 4),
    }
    save_file(tensors, folder / WEIGHTS)


def twice(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {**tensors, **{old_layout(k): t.clone() for k, t in tensors.items()}}, folder / WEIGHTS
    )


def setting(**values):
    return lambda folder: set_config(folder, **values)


BAD_FOLDERS = {
    "missing": (no_folder, "does not exist"),
    "a file": (a_file, "is a file"),
    "no config": (no_config, "adapter_config.json is missing"),
    "pickle only": (pickle_only, "a pickle, which can run code"),
    "no weights": (no_weights, "lacks adapter_model.safetensors"),
    "pickle in disguise": (pickle_in_disguise, "pickle or a zip"),
    "cut": (cut, "damaged"),
    "huge config": (huge_config, "too large"),
    "not numbers": (not_numbers, "not numbers"),
    "half a layer": (half_a_layer, "lacks lora_B"),
    "whole numbers": (whole_numbers, "torch.int32"),
    "empty": (empty, "is empty"),
    "embeddings": (embeddings, "lora_embedding_A.*Merge it"),
    "output matrix": (output_matrix, "lm_head.*output matrix.*merge"),
    "twice": (twice, "under old and new names"),
    "other kind": (setting(peft_type="IA3"), "'IA3' adapter; only LoRA"),
    "no kind": (setting(peft_type=None), "only LoRA"),
    "whole modules": (setting(modules_to_save=["lm_head"]), "modules_to_save: it replaces"),
    "biases": (setting(bias="all"), "bias='all'"),
    "lora bias": (setting(lora_bias=True), "lora_bias"),
    "pissa": (setting(init_lora_weights="pissa"), "changes the model's own weights"),
    "new tokens": (setting(trainable_token_indices=[5]), "trainable_token_indices"),
    "wrong rank": (setting(r=8), "the rank 8, but its matrices are 4 x"),
    "no rank": (setting(r=None), "r of .* is None"),
    "rank below 1": (setting(r=0), "r of .* is 0"),
    "true as a rank": (setting(r=True), "r of .* is True"),
    "no alpha": (setting(lora_alpha="high"), "lora_alpha of .* is 'high'"),
    "infinite alpha": (setting(lora_alpha=float("inf")), "lora_alpha"),
    "dora without magnitudes": (setting(use_dora=True), "lacks lora_magnitude_vector"),
    "no flag": (setting(use_rslora="yes"), "use_rslora of .* is 'yes'"),
    "no patterns": (setting(rank_pattern=["q_proj"]), "rank_pattern"),
    "hostile pattern": (setting(rank_pattern={"(.*)*x": 4}), "too involved"),
    "broken pattern": (setting(alpha_pattern={"(": 4}), "too involved"),
    "many patterns": (setting(alpha_pattern={f"a.*{i}": 1 for i in range(99)}), "too involved"),
}


@pytest.mark.parametrize(("damage", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_bad_folder_is_refused_by_name_and_leaks_no_path(
    adapters, model, folder, damage, message
):
    damage(folder)
    with pytest.raises(LoadError, match=message) as caught:
        adapters.add("mine", folder)
    assert str(folder.parent) not in str(caught.value)
    assert adapters.names == ()
    assert not hasattr(model.model.language_model.layers[0].self_attn.q_proj, "lora_A")


def test_any_config_is_read_or_refused_within_a_second(adapters, folder):
    chosen = random.Random(3)
    config = json.loads((folder / CONFIG).read_text())
    values = [None, True, -1, 0, 1e308, "x", "(a+)+$", [], [1], {}, {"a": None}, {"": -3}, 10**30]
    for _ in range(60):
        fuzzed = dict(config)
        for field in chosen.sample(sorted(config), 3):
            fuzzed[field] = chosen.choice(values)
        (folder / CONFIG).write_text(json.dumps(fuzzed))
        began = time.perf_counter()
        try:
            adapters.add("mine", folder)
            adapters.remove("mine")
        except LoadError:
            pass
        assert time.perf_counter() - began < 3


def test_any_bytes_as_config_are_refused(adapters, folder):
    for text in (b"", b"[]", b"null", b"\xff\xfe", b'{"a": ' * 100_000, b'{"peft_type": "LORA"}'):
        (folder / CONFIG).write_bytes(text)
        with pytest.raises(LoadError):
            adapters.add("mine", folder)


def test_a_module_list_of_the_config_does_not_matter_but_the_file(adapters, tiny, tmp_path):
    model = load_model(tiny, weights="fp32").model
    config = LoraConfig(r=4, target_modules=TEXT, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(str(tmp_path / "a"))
    set_config(tmp_path / "a", target_modules=["nothing"], base_model_name_or_path="/secret/path")
    adapters.add("mine", tmp_path / "a")
    assert adapters.names == ("mine",)
