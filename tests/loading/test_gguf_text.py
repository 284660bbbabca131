"""What the GGUF conversion gets right: names, merges, config, quantised blocks."""

import json
from dataclasses import dataclass, replace
from functools import cache

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from gemma3vl_app.catalog import published_config
from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading import gguf_text
from gemma3vl_app.loading.gguf_header import Reader
from gemma3vl_app.loading.gguf_text import (
    check_architecture,
    check_tensors,
    dequantised,
    factor_is_assumed,
    read_config,
    standard_name,
)
from gemma3vl_app.loading.gguf_vocabulary import (
    BYTE,
    CONTROL,
    SPECIAL_TOKENS,
    USER_DEFINED,
    derive_merges,
    read_tokenizer,
    token_id,
)
from tests.loading.gguf_files import released_vocabulary

NORMAL = 1


def test_tensors_get_the_published_names():
    assert standard_name("token_embd.weight") == "model.embed_tokens.weight"
    assert standard_name("blk.17.ffn_down.weight") == "model.layers.17.mlp.down_proj.weight"
    assert standard_name("blk.0.ffn_norm.weight") == (
        "model.layers.0.pre_feedforward_layernorm.weight"
    )


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_exps.weight", "rope_freqs.weight", "blk.x.attn_q.weight"]
)
def test_a_tensor_that_gemma_3_lacks_is_named(name):
    with pytest.raises(LoadError, match=name):
        standard_name(name)


def test_merges_follow_the_scores_and_runs_of_whitespace_come_first():
    tokens = ["<bos>", "<0x41>", "a", "b", "ab", "aba", "\n", "\n\n"]
    scores = [-1000.0, -1000.0, -9.0, -9.0, -2.0, -1.0, -9.0, -1000.0]
    kinds = [CONTROL, BYTE, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL, USER_DEFINED]
    assert derive_merges(tokens, scores, kinds) == [["\n", "\n"], ["ab", "a"], ["a", "b"]]


@pytest.fixture(scope="module")
def tokenizer(base_270m):
    return Tokenizer.from_file(str(base_270m / "tokenizer.json"))


@pytest.mark.parametrize(
    "text",
    [
        "a\n\n\n\nb",
        "  two  spaces ",
        "\t\ttabs",
        "naïve 日本 🙂 ☃︎ \u0378",
        "<b>tag</b>",
        "<unused7>",
    ],
)
def test_text_survives_the_round_trip(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_known_ids_are_the_released_ones(tokenizer):
    assert tokenizer.encode("The capital of France is").ids == [2, 818, 5279, 529, 7001, 563]
    assert tokenizer.encode("<start_of_turn>user\n", add_special_tokens=False).ids == [
        105,
        2364,
        107,
    ]
    assert tokenizer.token_to_id("<image_soft_token>") == 262_144
    assert tokenizer.token_to_id("<start_of_image>") == 255_999


def test_a_character_outside_the_vocabulary_becomes_its_bytes(tokenizer):
    tokens = tokenizer.encode("\u0378", add_special_tokens=False).tokens
    assert tokens == ["<0xCD>", "<0xB8>"]


def test_the_tokenizer_holds_the_released_numbers_of_tokens(base_270m):
    data = json.loads((base_270m / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(data["model"]["vocab"]) == 262_144
    assert len(data["model"]["merges"]) == 514_906
    assert len(data["added_tokens"]) == 6_415
    assert {t["content"] for t in data["added_tokens"] if t["special"]} == SPECIAL_TOKENS


def test_the_config_is_that_of_gemma_3_270m(base_270m):
    config = json.loads((base_270m / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == len(config["layer_types"]) == 18
    assert config["layer_types"].count("full_attention") == 3
    assert (config["hidden_size"], config["head_dim"], config["sliding_window"]) == (640, 256, 512)
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1_000_000, 10_000)


# --- configs of all sizes: headers only ---


@dataclass
class Value:
    value: object

    def contents(self):
        return self.value


@dataclass
class Stored:
    name: str
    data: np.ndarray
    tensor_type: Kind = Kind.F32


@dataclass
class Headers:
    fields: dict[str, Value]
    tensors: list[Stored]


SIZES = {
    # hidden, intermediate, layers, heads, key-value heads, head size, context, window
    "270m": (640, 2048, 18, 4, 1, 256, 32_768, 512),
    "1b": (1152, 6912, 26, 4, 1, 256, 32_768, 512),
    "4b": (2560, 10_240, 34, 8, 4, 256, 131_072, 1024),
    "12b": (3840, 15_360, 48, 16, 8, 256, 131_072, 1024),
    "27b": (5376, 21_504, 62, 32, 16, 128, 131_072, 1024),
}


def headers(size: str, *, rows: int = 262_144, vocabulary=None, **changes) -> Reader:
    """What llama.cpp's converter writes for a size; None as a change leaves a key out."""
    hidden, inner, layers, heads, kv_heads, head_dim, context, window = SIZES[size]
    vocabulary = vocabulary or released_vocabulary()
    values = {
        "general.architecture": "gemma3",
        "gemma3.context_length": context,
        "gemma3.embedding_length": hidden,
        "gemma3.block_count": layers,
        "gemma3.feed_forward_length": inner,
        "gemma3.attention.head_count": heads,
        "gemma3.attention.head_count_kv": kv_heads,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.attention.key_length": head_dim,
        "gemma3.attention.value_length": head_dim,
        "gemma3.attention.sliding_window": window,
        "gemma3.rope.freq_base": 1e6,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.scores": vocabulary.scores,
        "tokenizer.ggml.token_type": vocabulary.kinds,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 106,
        "tokenizer.ggml.padding_token_id": 0,
    }
    if layers > 26:
        values |= {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, layers)
    tensors = [
        Stored(names.get_name(name, (".weight",)), np.broadcast_to(np.float32(0), shape))
        for name, shape in released_shapes(size, rows).items()
    ]
    fields = {key: Value(value) for key, value in values.items() if value is not None}
    return Headers(fields, tensors)


@cache
def released_shapes(size: str, rows: int) -> dict[str, tuple[int, ...]]:
    """The weights that transformers makes for a size, by name."""
    hidden, inner, layers, heads, kv_heads, head_dim, *_ = SIZES[size]
    config = Gemma3TextConfig(
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
    )
    with torch.device("meta"):
        model = Gemma3ForCausalLM(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters() if "lm_head" not in name}


@pytest.mark.parametrize("size", SIZES)
def test_the_config_is_that_of_the_size(size):
    config = Gemma3TextConfig.from_dict(read_config(headers(size)))
    hidden, inner, layers, heads, kv_heads, head_dim, context, window = SIZES[size]
    assert (config.hidden_size, config.intermediate_size) == (hidden, inner)
    assert (config.num_attention_heads, config.num_key_value_heads) == (heads, kv_heads)
    assert config.head_dim == head_dim
    assert config.query_pre_attn_scalar == {"27b": 168}.get(size, 256)
    assert (config.max_position_embeddings, config.sliding_window) == (context, window)
    assert config.layer_types.count("full_attention") == layers // 6
    sliding, full = (config.rope_parameters[f"{kind}_attention"] for kind in ("sliding", "full"))
    assert (sliding["rope_type"], sliding["rope_theta"]) == ("default", 10_000)
    assert full["rope_theta"] == 1_000_000
    assert full["rope_type"] == ("linear" if layers > 26 else "default")
    assert full.get("factor") == (8 if layers > 26 else None)


@pytest.mark.parametrize("size", ["4b", "12b", "27b"])
def test_the_config_equals_the_published_one(size):
    """Everything that shapes the computation, with transformers' defaults filled in."""
    ours = Gemma3TextConfig.from_dict(read_config(headers(size, rows=262_208))).to_dict()
    theirs = Gemma3TextConfig.from_dict(published_config(size)["text_config"]).to_dict()
    names = {"architectures", "dtype", "_name_or_path", "eos_token_id", "transformers_version"}
    for key in theirs.keys() - names:
        assert ours[key] == theirs[key], key


@pytest.mark.parametrize("size", SIZES)
def test_the_tensors_of_the_size_are_taken(size):
    reader = headers(size)
    check_tensors(reader, read_config(reader))
    names = {standard_name(entry.name) for entry in reader.tensors}
    assert names == released_shapes(size, 262_144).keys()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("gemma3.embedding_length", "model.embed_tokens.weight"),
        ("gemma3.feed_forward_length", "model.layers.0.mlp.down_proj.weight"),
        ("gemma3.attention.head_count", "model.layers.0.self_attn.o_proj.weight"),
        ("gemma3.attention.head_count_kv", "model.layers.0.self_attn.k_proj.weight"),
        ("gemma3.attention.key_length", "model.layers.0.self_attn.k_norm.weight"),
    ],
)
def test_tensors_that_do_not_fit_the_settings_are_named(key, name):
    reader = headers("270m", **{key: 32})
    with pytest.raises(LoadError, match=f"does not fit its settings in '{name}'"):
        check_tensors(reader, read_config(reader))


@pytest.mark.parametrize("size", SIZES)
def test_a_file_without_scaling_gets_the_releases_factor(size):
    bare = headers(size, gemma3__rope__scaling__type=None, gemma3__rope__scaling__factor=None)
    scaled = size in ("4b", "12b", "27b")
    assert factor_is_assumed(bare) == scaled
    scaling = {"rope_type": "linear", "factor": 8.0} if scaled else None
    assert read_config(bare).get("rope_scaling") == scaling


def test_the_files_own_scaling_rules():
    assert not factor_is_assumed(headers("4b"))
    other = read_config(headers("4b", gemma3__rope__scaling__factor=2.0))
    assert other["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    none = read_config(headers("4b", gemma3__rope__scaling__type="none"))
    assert "rope_scaling" not in none
    with pytest.raises(LoadError, match="yarn"):
        read_config(headers("4b", gemma3__rope__scaling__type="yarn"))


def test_a_short_context_of_34_layers_is_no_released_size():
    reader = headers(
        "4b",
        gemma3__rope__scaling__type=None,
        gemma3__rope__scaling__factor=None,
        gemma3__context_length=32_768,
    )
    assert "rope_scaling" not in read_config(reader)


def test_rare_keys_of_sliding_layers_are_read():
    reader = headers(
        "270m",
        **{"gemma3.rope.freq_base_swa": 20_000.0},
        **{"gemma3.attention.sliding_window_pattern": [True, True, False] * 6},
    )
    config = read_config(reader)
    assert config["rope_local_base_freq"] == 20_000
    assert config["layer_types"].count("full_attention") == 6


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("gemma3.block_count", None, "lacks 'gemma3.block_count'"),
        ("gemma3.block_count", 2**30, "announces"),
        ("gemma3.block_count", 17, "does not need"),
        ("gemma3.attention.head_count", 0, "head_count"),
        ("gemma3.attention.head_count_kv", [1, 2], "a list"),
        ("gemma3.rope.freq_base", float("nan"), "freq_base"),
        ("gemma3.final_logit_softcapping", 30.0, "caps"),
        ("gemma3.attention.sliding_window_pattern", [True], "does not fit"),
        ("gemma3.attention.sliding_window_pattern", 0, "sliding_window_pattern"),
        ("tokenizer.ggml.model", "gpt2", "'gpt2'"),
        ("tokenizer.ggml.tokens", [1, 2], "another kind"),
        ("tokenizer.ggml.tokens", ["a"], "damaged"),
        ("tokenizer.ggml.eos_token_id", 2**31, "<eos>"),
    ],
)
def test_settings_that_make_no_sense_are_named(key, value, message):
    reader = headers("270m", **{key: value})
    with pytest.raises(LoadError, match=message):
        check_tensors(reader, read_config(reader))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3n", "gemma4", "gemma-embedding"])
def test_another_architecture_is_named(name):
    with pytest.raises(LoadError, match=f"{name!r} model; expected 'gemma3'"):
        check_architecture(headers("270m", **{"general.architecture": name}))


def test_an_mmproj_in_place_of_the_model_is_called_one():
    with pytest.raises(LoadError, match="mmproj"):
        check_architecture(headers("270m", **{"general.architecture": "clip"}))


def test_both_in_one_file_is_not_read_as_text():
    reader = headers("4b")
    reader.tensors.append(Stored("v.patch_embd.weight", np.zeros(4, np.float32)))
    with pytest.raises(LoadError, match="Ollama"):
        check_architecture(reader)


def test_an_output_matrix_of_its_own_is_named():
    with pytest.raises(LoadError, match="output matrix"):
        standard_name("output.weight")


# --- vocabularies ---


def test_padding_and_an_image_token_of_its_own_change_nothing():
    """Converters that believe the config's size write 262,208 entries, some with the token."""
    vocabulary = released_vocabulary().cut()
    plain = headers("4b", vocabulary=vocabulary)
    padded = vocabulary.padded()
    named = replace(padded, tokens=list(padded.tokens), kinds=list(padded.kinds))
    named.tokens[len(vocabulary.tokens)] = "<image_soft_token>"
    named.kinds[len(vocabulary.tokens)] = CONTROL
    expected = read_tokenizer(plain)
    assert read_tokenizer(headers("4b", vocabulary=padded)) == expected
    with_token = read_tokenizer(headers("4b", vocabulary=named))
    assert with_token["added_tokens"] == expected["added_tokens"]
    assert with_token["model"]["merges"] == expected["model"]["merges"]
    for each in (plain, headers("4b", vocabulary=padded), headers("4b", vocabulary=named)):
        assert token_id(each, "<image_soft_token>") == len(vocabulary.tokens)


def test_control_tokens_marked_as_text_stay_control_tokens():
    vocabulary = released_vocabulary().cut()
    wrong = replace(vocabulary, kinds=[1 if kind == CONTROL else kind for kind in vocabulary.kinds])
    special = {
        each["content"]
        for each in read_tokenizer(headers("4b", vocabulary=wrong))["added_tokens"]
        if each["special"]
    }
    assert special == SPECIAL_TOKENS


def test_fewer_rows_than_tokens_are_refused():
    with pytest.raises(LoadError, match="embeds 262143 tokens"):
        read_config(headers("4b", rows=262_143))


# --- blocks ---

WRITABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
READABLE = (*WRITABLE, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ2_S")


@pytest.mark.parametrize("name", WRITABLE)
def test_a_stored_matrix_comes_back_as_the_format_rounds_it(name, monkeypatch):
    monkeypatch.setattr(gguf_text, "CHUNK_NUMBERS", 300)  # four rows at a time, one at the end
    kind = Kind[name]
    numbers = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    stored = gguf.quantize(numbers, kind)
    expected = torch.from_numpy(gguf.dequantize(stored, kind).copy()).to(torch.bfloat16)
    assert torch.equal(dequantised(Stored("m", stored, kind)), expected)
    assert dequantised(Stored("m", stored, kind), minus=1).float() == pytest.approx(
        expected.float() - 1, abs=0.02
    )


@pytest.mark.parametrize("name", READABLE)
def test_the_usual_formats_are_read(name):
    kind = Kind[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.zeros((3, 2 * size), np.uint8)
    weight = dequantised(Stored("m", raw, kind))
    assert weight.shape == (3, 2 * block)
    assert weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["Q8_K", "I32", "F64", "Q8_1"])
def test_a_format_that_cannot_be_read_is_named(name):
    kind = Kind[name]
    raw = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    with pytest.raises(LoadError, match=f"'blk.0.x' as {name}"):
        dequantised(Stored("blk.0.x", raw, kind))
