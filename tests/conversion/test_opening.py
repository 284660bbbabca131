"""Whatever the layout of a source, the same weights come out, and it is told what it was."""

import json
import re
import shutil

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file

from gemma3vl_app.conversion.converting import Bridge
from gemma3vl_app.errors import ConversionError, LoadError
from gemma3vl_app.loading import nf4
from gemma3vl_app.loading.cache import CACHE_VARIABLE
from tests.conversion.conftest import assert_same_bits, stored_as, weights_of, with_config
from tests.loading.gguf_files import (
    cut_checkpoint,
    released_vocabulary,
    write_mmproj,
    write_text,
)

LAYER = re.compile(r"language_model\.model\.layers\.(\d+)\.")
MLP = "language_model.model.layers.0.mlp."
PROJECTION = "multi_modal_projector.mm_input_projection_weight"


def opened(folder):
    bridge = Bridge.open(folder)
    return {name: each.read() for name, each in bridge.source.tensors.items()}, bridge.detected


@pytest.fixture(scope="module")
def plain(small):
    return opened(small)[0]


def joined(tensors):
    """Queries, keys and values as one matrix, gates and ups as one, as servers keep them."""
    result = dict(tensors)
    for layer in {found[0] for key in tensors if (found := LAYER.match(key))}:
        for whole, parts in (
            ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            taken = [result.pop(f"{layer}{part}.weight") for part in parts]
            result[f"{layer}{whole}.weight"] = torch.cat(taken)
    return result


def test_joined_matrices_are_taken_apart(small, plain, tmp_path):
    folder = stored_as(tmp_path / "joined", small, joined)
    assert len(weights_of(folder)) == len(weights_of(small)) - 2 * 3
    found, detected = opened(folder)
    assert_same_bits(found, plain)
    assert "queries, keys and values joined" in str(detected)
    assert "gate and up projections joined" in str(detected)


@pytest.mark.parametrize("name", [PROJECTION, PROJECTION.replace("_weight", ".weight")])
def test_a_transposed_projector_is_turned(name, small, plain, tmp_path):
    def turned(tensors):
        projection = tensors.pop(PROJECTION)
        return tensors | {name: projection.T}

    found, detected = opened(stored_as(tmp_path / "turned", small, turned))
    assert_same_bits(found, plain)
    assert "projector transposed" in str(detected)


def test_a_repeated_output_matrix_and_computed_values_are_dropped(small, plain, tmp_path):
    def with_more(tensors):
        head = tensors["language_model.model.embed_tokens.weight"].clone()
        inverse = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
        return tensors | {"language_model.lm_head.weight": head, inverse: torch.ones(8)}

    found, detected = opened(stored_as(tmp_path / "more", small, with_more))
    assert_same_bits(found, plain)
    assert "output matrix written out" in str(detected)


def test_an_output_matrix_of_its_own_is_refused(small, tmp_path):
    def with_head(tensors):
        head = tensors["language_model.model.embed_tokens.weight"] + 1
        return tensors | {"language_model.lm_head.weight": head}

    with pytest.raises(LoadError, match="output matrix"):
        opened(stored_as(tmp_path / "own", small, with_head))


def test_joined_matrices_in_4_bits_are_numbers_again(small, plain, tmp_path):
    def quantised(tensors):
        found = joined(tensors)
        for key in [key for key in found if "gate_up_proj" in key]:
            parts = nf4.quantise(found.pop(key))
            found |= {key + suffix: part for suffix, part in parts.items()}
        return found

    folder = stored_as(tmp_path / "quantised", small, quantised)
    with_config(folder, quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"})
    found, detected = opened(folder)
    assert found.keys() == plain.keys()
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    assert 0 < (found[name].float() - plain[name].float()).norm() / plain[name].float().norm() < 0.2
    assert "bfloat16 and 4 bits" in str(detected)


def test_a_text_only_checkpoint(small, plain, tmp_path):
    folder = stored_as(tmp_path / "text", small, lambda tensors: {
        key.removeprefix("language_model."): each
        for key, each in tensors.items()
        if key.startswith("language_model.")
    })  # fmt: skip
    text = json.loads((small / "config.json").read_text())["text_config"]
    config = text | {"architectures": ["Gemma3ForCausalLM"], "eos_token_id": [1, 106]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").unlink()
    found, detected = opened(folder)
    assert not detected.takes_pictures
    theirs = {
        key.replace("language_model.", ""): each for key, each in plain.items() if "lang" in key
    }
    assert_same_bits(found, theirs)
    written = Bridge.open(folder).write(tmp_path / "out", "transformers5", check=True)
    assert_same_bits(weights_of(written), weights_of(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t | {"language_model.model.extra.weight": torch.ones(1)}, "model.extra.weight"),
        (
            lambda t: {k: v for k, v in t.items() if "fc1.bias" not in k},
            "lacks weights: .*fc1.bias",
        ),
        (lambda t: t | {PROJECTION: torch.ones(3, 5)}, "3 x 5, and config.json makes it 48 x 64"),
        (
            lambda t: t | {"language_model.model.layers.7.mlp.up_proj.weight": torch.ones(1)},
            "it has no model.language_model.layers.7",
        ),
        (
            lambda t: (
                t | {"language_model.model.layers.0.mlp.gate_up_proj.weight": torch.ones(256, 64)}
            ),
            "twice, under two names",
        ),
    ],
)
def test_what_does_not_belong_is_named(change, said, small, tmp_path):
    with pytest.raises(ConversionError, match=said):
        opened(stored_as(tmp_path / "wrong", small, change))


def test_several_files_and_a_hub_folder_are_told(small, tmp_path):
    commit = "0123456789" * 4
    folder = tmp_path / "models--who--what" / "snapshots" / commit
    shutil.copytree(small, folder)
    (folder / "model.safetensors").unlink()
    tensors = weights_of(small)
    where = {key: f"model-0000{n % 2 + 1}-of-00002.safetensors" for n, key in enumerate(tensors)}
    for file in set(where.values()):
        save_file({k: t for k, t in tensors.items() if where[k] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    _, detected = opened(folder)
    assert (detected.files, detected.revision) == (2, commit)
    assert str(detected).startswith("a folder with the hub's names; Gemma3ForConditionalGeneration")


def test_a_gguf_file_becomes_a_checkpoint_in_the_hubs_layout(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    vocabulary = released_vocabulary().cut()
    original = cut_checkpoint(tiny, tmp_path / "original", vocabulary)
    text = write_text(tmp_path / "model.gguf", original, vocabulary)
    write_mmproj(tmp_path / "mmproj.gguf", original, kind=Kind.BF16)
    bridge = Bridge.open(text)
    assert str(bridge.detected).startswith("a GGUF file, brought into a folder of the cache")
    out = bridge.write(tmp_path / "out", "hub")
    ours, theirs = weights_of(out), weights_of(original)
    assert ours.keys() == theirs.keys()
    matrices = {key for key, each in theirs.items() if each.dim() == 2 and "embed" not in key}
    assert len(matrices) > 40
    for key in matrices:
        assert torch.equal(ours[key].float(), theirs[key].float()), key
