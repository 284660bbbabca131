"""Gemma 3's language model out of a GGUF file: dequantised weights, config and tokenizer.

Knows the GGUF names of one architecture ("gemma3") and llama.cpp's conventions for it; knows
nothing of where the file came from. Text only: a vision tower comes in a file of its own, see
`gguf_vision`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.gguf_header import SHOWN, Reader, Tensor, stored_shape
from gemma3vl_app.loading.gguf_values import count, number, optional, value
from gemma3vl_app.loading.gguf_vocabulary import control_id, read_tokenizer, vocabulary

__all__ = ["check_tensors", "read_config", "read_tokenizer", "read_weights"]

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

LOCAL_ROPE_THETA = 10_000.0  # of the sliding layers, in all of Gemma 3; most files leave it out
SLIDING_PATTERN = 6  # every sixth layer attends to everything

# Of the released sizes with vision (4B, 12B, 27B), for files without `rope.scaling` keys
SCALED_LAYERS = frozenset({34, 48, 62})
SCALED_CONTEXT_TOKENS = 131_072
SCALED_FACTOR = 8.0
LAYERS_27B = 62

CHUNK_NUMBERS = 1 << 24  # dequantised at a time; the largest matrix has over a billion


def standard_name(name: str) -> str:
    """Return the published checkpoints' name of a GGUF tensor; raises `LoadError` for others."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    if name == "output.weight":
        raise LoadError(
            "The GGUF file holds an output matrix of its own; Gemma 3 shares it with the "
            "embeddings. Take another conversion of this model."
        )
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if found is None or found[2] not in LAYER_NAMES:
        raise LoadError(f"The GGUF file holds {name[:60]!r}, which no Gemma 3 language model has.")
    return f"model.layers.{found[1]}.{LAYER_NAMES[found[2]]}.weight"


def read_weights(reader: Reader) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight as (published name, bf16 tensor), dequantised, one at a time."""
    for entry in reader.tensors:
        name = standard_name(entry.name)
        # llama.cpp stores 1 + w, because its RMSNorm multiplies by w alone
        yield name, dequantised(entry, minus=1 if name.endswith("norm.weight") else 0)


def dequantised(entry: Tensor, *, minus: float = 0) -> torch.Tensor:
    """Return a stored tensor in bf16, `minus` taken off before rounding; raises `LoadError`.

    Works through large matrices by groups of rows, so that only the result takes memory.
    """
    check_kind(entry)
    rows: npt.NDArray[Any] = entry.data.reshape(-1, entry.data.shape[-1])
    shape = stored_shape(entry)
    numbers = shape[-1]
    weight = torch.empty(len(rows), numbers, dtype=torch.bfloat16)
    step = max(1, CHUNK_NUMBERS // numbers)
    for start in range(0, len(rows), step):
        # A copy: file maps are read only, and their data need not be aligned
        chunk = np.array(rows[start : start + step]).view(np.uint8)
        values = gguf.dequantize(chunk, entry.tensor_type) - np.float32(minus)
        weight[start : start + step] = torch.from_numpy(values)
    return weight.reshape(shape)


def check_kind(entry: Tensor) -> None:
    """Raise `LoadError` by name for a quantisation that cannot be undone here."""
    if not _known_kind(entry.tensor_type):
        raise LoadError(
            f"The GGUF file stores {entry.name[:SHOWN]!r} as {entry.tensor_type.name}, which "
            "cannot be read here. Take a file in another format, such as Q8_0, Q4_0 or Q4_K_M."
        )


@cache
def _known_kind(kind: gguf.GGMLQuantizationType) -> bool:
    block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    try:
        gguf.dequantize(block, kind)
    except NotImplementedError:  # how gguf says that it knows the format by name only
        return False
    return True


def check_tensors(reader: Reader, config: Mapping[str, Any]) -> None:
    """Raise `LoadError` for tensors that are unknown, missing, misshapen or unreadable."""
    found = {}
    for entry in reader.tensors:
        check_kind(entry)
        found[standard_name(entry.name)] = stored_shape(entry)
    expected = expected_shapes(config)
    for what, names in (
        ("lacks", expected.keys() - found.keys()),
        ("does not need", found.keys() - expected.keys()),
        ("does not fit its settings in", {n for n in found if found[n] != expected.get(n)}),
    ):
        if names:
            raise LoadError(
                f"The GGUF file {what} {min(names)!r} ({len(names)} such tensors). "
                "Download or copy it again."
            )


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes, rows first, of all weights of a config by their published names."""
    hidden, inner, head = (config[key] for key in ("hidden_size", "intermediate_size", "head_dim"))
    queries, keys = (config[f"num_{kind}_heads"] * head for kind in ("attention", "key_value"))
    layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for index in range(config["num_hidden_layers"]):
        for name in LAYER_NAMES.values():
            shapes[f"model.layers.{index}.{name}.weight"] = layer.get(name, (hidden,))
    return shapes


def read_config(reader: Reader) -> dict[str, Any]:
    """Return the file's settings as a config.json of `Gemma3ForCausalLM`.

    The scaling of positions counts for the global layers only. Raises `LoadError` for another
    architecture, and for settings that are missing or make no sense.
    """
    check_architecture(reader)
    layers = count(reader, "gemma3.block_count")
    if layers > len(reader.tensors):
        raise LoadError(f"The GGUF file announces {layers} layers and does not hold them.")
    heads = count(reader, "gemma3.attention.head_count")
    head_dim = count(reader, "gemma3.attention.key_length")
    hidden = count(reader, "gemma3.embedding_length")
    if optional(reader, "gemma3.final_logit_softcapping"):
        raise LoadError("The GGUF file caps its logits, which no released Gemma 3 does.")
    local = "gemma3.rope.freq_base_swa"
    factor = rope_factor(reader)
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "dtype": "bfloat16",
        "vocab_size": _vocabulary_rows(reader),
        "hidden_size": hidden,
        "intermediate_size": count(reader, "gemma3.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": count(reader, "gemma3.attention.head_count_kv"),
        "head_dim": head_dim,
        # 27B alone scales its queries by the width of a head as the hidden size has it
        "query_pre_attn_scalar": hidden // heads if layers == LAYERS_27B else head_dim,
        "max_position_embeddings": count(reader, "gemma3.context_length"),
        "rms_norm_eps": number(reader, "gemma3.attention.layer_norm_rms_epsilon"),
        "rope_theta": number(reader, "gemma3.rope.freq_base"),
        "rope_local_base_freq": (
            number(reader, local) if local in reader.fields else LOCAL_ROPE_THETA
        ),
        **({"rope_scaling": {"rope_type": "linear", "factor": factor}} if factor != 1 else {}),
        "sliding_window": count(reader, "gemma3.attention.sliding_window"),
        "layer_types": _layer_types(reader, layers),
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        **{
            f"{name}_token_id": control_id(reader, key, f"<{name}>")
            for name, key in (("pad", "padding"), ("eos", "eos"), ("bos", "bos"))
        },
    }


def check_architecture(reader: Reader) -> None:
    """Raise `LoadError` unless this is a Gemma 3 language model, and nothing beside it."""
    architecture = str(value(reader, "general.architecture"))[:SHOWN]
    if architecture == "clip":
        raise LoadError(
            "The GGUF file holds a vision tower (mmproj) only. Give the language model's file; "
            "the mmproj file beside it is found by its name."
        )
    if architecture != "gemma3":
        raise LoadError(
            f"The GGUF file holds a {architecture!r} model; expected 'gemma3' (Gemma 3 270M, 1B, "
            "4B, 12B or 27B)."
        )
    if any(entry.name.startswith(("v.", "mm.")) for entry in reader.tensors):
        raise LoadError(
            "The GGUF file holds language model and vision tower in one, as Ollama stores them. "
            "Take the two files of llama.cpp instead: the model, and its mmproj."
        )


def rope_factor(reader: Reader) -> float:
    """Return what positions are divided by in global layers: the file's word, or the release's.

    A file without the keys, of a size and context that were released with factor 8, gets 8; see
    `factor_is_assumed`.
    """
    kind = optional(reader, "gemma3.rope.scaling.type")
    if kind not in (None, "linear", "none"):
        raise LoadError(
            f"The GGUF file scales its positions by {str(kind)[:SHOWN]!r}; Gemma 3 does so "
            "linearly. Take a file that was converted from the released model."
        )
    if kind == "none":
        return 1.0
    if optional(reader, "gemma3.rope.scaling.factor") is None:
        return SCALED_FACTOR if factor_is_assumed(reader) else 1.0
    factor = number(reader, "gemma3.rope.scaling.factor")
    return factor if factor != 0 else 1.0  # llama.cpp reads 0 as "not set"


def factor_is_assumed(reader: Reader) -> bool:
    """Whether the file is of a size whose positions are scaled, and does not say so itself."""
    return (
        not any(key.startswith("gemma3.rope.scaling.") for key in reader.fields)
        and count(reader, "gemma3.block_count") in SCALED_LAYERS
        and count(reader, "gemma3.context_length") >= SCALED_CONTEXT_TOKENS
    )


def _vocabulary_rows(reader: Reader) -> int:
    """Return the rows of the embedding: converters keep or drop those that no token has."""
    table = next((each for each in reader.tensors if each.name == "token_embd.weight"), None)
    if table is None:
        raise LoadError("The GGUF file lacks 'token_embd.weight'. Is one of its parts missing?")
    rows = int(table.data.shape[0])
    if rows < len(vocabulary(reader)[0]):
        raise LoadError(
            f"The GGUF file embeds {rows} tokens and names more. Download or copy it again."
        )
    return rows


def _layer_types(reader: Reader, layers: int) -> list[str]:
    """Return each layer's kind; the key is rare, and a period or a flag for every layer."""
    key = "gemma3.attention.sliding_window_pattern"
    given = optional(reader, key)
    if isinstance(given, list):
        if len(given) != layers:
            raise LoadError("The GGUF file's sliding_window_pattern does not fit its layers.")
        sliding = [bool(flag) for flag in given]
    else:
        period = SLIDING_PATTERN if given is None else count(reader, key)
        sliding = [(layer + 1) % period != 0 for layer in range(layers)]
    return ["sliding_attention" if slides else "full_attention" for slides in sliding]
