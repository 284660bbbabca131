"""What the GGUF conversion gets right: names, merges, config."""

import json

import pytest
from tokenizers import Tokenizer

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.gguf_text import (
    BYTE,
    CONTROL,
    SPECIAL_TOKENS,
    USER_DEFINED,
    derive_merges,
    standard_name,
)

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
