"""Gemma 3's language model out of a GGUF file: dequantised weights, config and tokenizer.

Knows the GGUF names of one architecture ("gemma3") and llama.cpp's conventions for it; knows
nothing of where the file came from. Text only: a GGUF of this kind holds no vision tower.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import gguf
import torch

from gemma3vl_app.errors import LoadError

# GGUF name of a layer's tensor -> its name in the published checkpoints
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}

# Kinds of token in a GGUF vocabulary (llama.cpp's llama_token_type)
CONTROL, USER_DEFINED, BYTE = 3, 4, 6

SPECIAL_TOKENS = frozenset(
    {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"}
    | {"<start_of_image>", "<end_of_image>", "<image_soft_token>"}
)
IMAGE_TOKEN = "<image_soft_token>"  # the first id after the text-only vocabulary
SPACE_MARK = "\u2581"
LOCAL_ROPE_THETA = (
    10_000.0  # of the sliding layers; the same in all of Gemma 3, and not in the file
)
SLIDING_PATTERN = 6  # every sixth layer attends to everything


def standard_name(name: str) -> str:
    """Return the published checkpoints' name of a GGUF tensor; raises `LoadError` for others."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if found is None or found[2] not in LAYER_NAMES:
        raise LoadError(f"The GGUF file holds {name[:60]!r}, which no Gemma 3 language model has.")
    return f"model.layers.{found[1]}.{LAYER_NAMES[found[2]]}.weight"


def read_weights(reader: gguf.GGUFReader) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight as (published name, fp32 tensor), dequantised."""
    for entry in reader.tensors:
        weight = gguf.dequantize(entry.data, entry.tensor_type)
        if entry.name.endswith("norm.weight"):
            weight = weight - 1  # llama.cpp stores 1 + w, because its RMSNorm multiplies by w alone
        yield standard_name(entry.name), torch.from_numpy(weight)


def read_config(reader: gguf.GGUFReader) -> dict[str, Any]:
    """Return the file's settings as a config.json of `Gemma3ForCausalLM`.

    Only for the sizes without vision: their rope is unscaled; the scaling of others is refused.
    """
    if (architecture := _value(reader, "general.architecture")) != "gemma3":
        raise LoadError(
            f"The GGUF file holds a {str(architecture)[:40]!r} model; expected 'gemma3'."
        )
    if any(key.startswith("gemma3.rope.scaling") for key in reader.fields):
        raise LoadError(
            "The GGUF file scales its positions (Gemma 3 4B and larger); not supported yet."
        )
    head_dim = _value(reader, "gemma3.attention.key_length")
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "dtype": "bfloat16",
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        "hidden_size": _value(reader, "gemma3.embedding_length"),
        "intermediate_size": _value(reader, "gemma3.feed_forward_length"),
        "num_hidden_layers": _value(reader, "gemma3.block_count"),
        "num_attention_heads": _value(reader, "gemma3.attention.head_count"),
        "num_key_value_heads": _value(reader, "gemma3.attention.head_count_kv"),
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "max_position_embeddings": _value(reader, "gemma3.context_length"),
        "rms_norm_eps": _value(reader, "gemma3.attention.layer_norm_rms_epsilon"),
        "rope_theta": _value(reader, "gemma3.rope.freq_base"),
        "rope_local_base_freq": LOCAL_ROPE_THETA,
        "sliding_window": _value(reader, "gemma3.attention.sliding_window"),
        "layer_types": [
            "sliding_attention" if (layer + 1) % SLIDING_PATTERN else "full_attention"
            for layer in range(_value(reader, "gemma3.block_count"))
        ],
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id"),
        "eos_token_id": _value(reader, "tokenizer.ggml.eos_token_id"),
        "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
    }


def read_tokenizer(reader: gguf.GGUFReader) -> dict[str, Any]:
    """Return the file's vocabulary as a tokenizer.json of the `tokenizers` library.

    It equals Google's own file: same ids, same added tokens, same merges in the same order.
    """
    scores = [float(score) for score in _array(reader, "scores")]
    kinds = [int(kind) for kind in _array(reader, "token_type")]
    tokens = [
        # llama.cpp spells the runs of spaces with spaces; BPE sees them after normalisation
        text.replace(" ", SPACE_MARK) if kind == USER_DEFINED else text
        for text, kind in zip(_array(reader, "tokens"), kinds, strict=True)
    ]
    added = [
        (id_, text)
        for id_, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(*entry) for entry in (*added, (len(tokens), IMAGE_TOKEN))],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": _begin_with("<bos>", tokens.index("<bos>")),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: id_ for id_, text in enumerate(tokens)},
            "merges": derive_merges(tokens, scores, kinds),
        },
    }


def derive_merges(tokens: list[str], scores: list[float], kinds: list[int]) -> list[list[str]]:
    """Return the BPE merges that a scored vocabulary stands for, first applied first.

    Every way to split a token into two tokens is a merge; its rank is the joined token's score,
    where runs of whitespace (user-defined) have the best score, 0; then longer left, then longer
    right pieces first.
    """
    ids = {text: id_ for id_, text in enumerate(tokens)}
    ranked: list[tuple[float, int, int, str, str]] = []
    for text, score, kind in zip(tokens, scores, kinds, strict=True):
        if kind in (CONTROL, BYTE):
            continue
        rank = 0.0 if kind == USER_DEFINED else score
        splits = ((text[:i], text[i:]) for i in range(1, len(text)))
        known = [pair for pair in splits if pair[0] in ids and pair[1] in ids]
        known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]), reverse=True)
        ranked += [(rank, len(left), len(right), left, right) for left, right in known]
    ranked.sort(key=lambda merge: merge[:3], reverse=True)
    return [[left, right] for *_, left, right in ranked]


def _added_token(id_: int, text: str) -> dict[str, Any]:
    return {
        "id": id_,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": text in SPECIAL_TOKENS,
    }


def _begin_with(text: str, id_: int) -> dict[str, Any]:
    """Return the post-processor that puts one token before each sequence."""
    first, second = (
        [{"SpecialToken": {"id": text, "type_id": i}}, {"Sequence": {"id": name, "type_id": i}}]
        for i, name in enumerate("AB")
    )
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {text: {"id": text, "ids": [id_], "tokens": [text]}},
    }


def _array(reader: gguf.GGUFReader, key: str) -> list[Any]:
    contents = _value(reader, f"tokenizer.ggml.{key}")
    assert isinstance(contents, list)
    return contents


def _value(reader: gguf.GGUFReader, key: str) -> Any:
    if key not in reader.fields:
        raise LoadError(
            f"The GGUF file lacks {key!r}; it is not a complete Gemma 3 language model."
        )
    return reader.fields[key].contents()
