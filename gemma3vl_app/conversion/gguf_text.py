"""The language model's GGUF file: its settings as llama.cpp reads them, tokenizer and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf

from gemma3vl_app.conversion.expressible import check_plain
from gemma3vl_app.conversion.gguf_file import Entry, StoredType, add_general, entry, write_file
from gemma3vl_app.conversion.gguf_names import GGUF_TEXT
from gemma3vl_app.conversion.gguf_tokenizer import add_tokenizer, chat_template, read_vocabulary
from gemma3vl_app.conversion.names import MEMORY_PROJECTOR, MEMORY_TOWER, to_file
from gemma3vl_app.errors import ConversionError
from gemma3vl_app.generation import Report, Sample, Sampling
from gemma3vl_app.loading.gguf_sampling import GREEDY_TEMPERATURE
from gemma3vl_app.loading.gguf_text import LAYERS_27B, SLIDING_PATTERN
from gemma3vl_app.loading.loader import build_skeleton
from gemma3vl_app.loading.sources import Source

ARCHITECTURE = "gemma3"
TABLE = "token_embd.weight"
NO_MIN_P = 0.0  # llama.cpp else leaves out what is under 5 % of the most likely token


def text_entries(source: Source, stored: StoredType) -> list[Entry]:
    """Return the language model's tensors as its file holds them, not read yet."""
    own = {
        name: weight
        for name, weight in source.tensors.items()
        if not name.startswith((MEMORY_TOWER, MEMORY_PROJECTOR))
    }
    return [
        entry(name, weight, stored.table if name == TABLE else stored.matrices)
        for name, weight in to_file(own, GGUF_TEXT).items()
    ]


def write_text(path: Path, source: Source, stored: StoredType, report: Report) -> None:
    """Write the language model of `source` to `path`.

    Raises `ConversionError` for settings that llama.cpp has no place for, `LoadError` for a
    tokenizer that is not Gemma 3's, and `OSError` where the disk refuses.
    """
    config: Any = build_skeleton(source.checkpoint).config.get_text_config()
    entries = text_entries(source, stored)
    writer = gguf.GGUFWriter(None, ARCHITECTURE)
    parameters = sum(each.weight.nbytes // each.weight.dtype.itemsize for each in entries)
    add_general(writer, source, stored, gguf.GGUFType.MODEL, parameters)
    _add_settings(writer, config)
    _add_sampling(writer, source.checkpoint.sampling)
    vocabulary = read_vocabulary(source.checkpoint.tokenizer_file, config.vocab_size)
    add_tokenizer(writer, vocabulary, chat_template(source.checkpoint.folder))
    write_file(path, writer, entries, report)


def _add_settings(writer: gguf.GGUFWriter, config: Any) -> None:
    _check_expressible(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_sliding_window(config.sliding_window)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if rope["full_attention"].get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["full_attention"]["factor"])
    else:  # said aloud, since a file that is silent may be taken for one of the released sizes
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def _add_sampling(writer: gguf.GGUFWriter, sampling: Sampling) -> None:
    """Put in how the checkpoint chooses tokens; llama.cpp does so unless it is told otherwise."""
    if isinstance(sampling, Sample):
        writer.add_sampling_temp(sampling.temperature)
        writer.add_sampling_top_k(sampling.top_k)
        writer.add_sampling_top_p(sampling.top_p)
        writer.add_sampling_min_p(NO_MIN_P)
    else:
        writer.add_sampling_temp(GREEDY_TEMPERATURE)


def _check_expressible(config: Any) -> None:
    """Raise `ConversionError` for what llama.cpp fixes for all of Gemma 3, and this one has not."""
    repeating = [(layer + 1) % SLIDING_PATTERN != 0 for layer in range(config.num_hidden_layers)]
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    hidden_head = config.hidden_size // config.num_attention_heads
    scalar = hidden_head if config.num_hidden_layers == LAYERS_27B else config.head_dim
    check_plain(config, "a GGUF file")
    for is_wrong, what in (
        (sliding != repeating, f"global layers elsewhere than at every {SLIDING_PATTERN}th"),
        (config.query_pre_attn_scalar != scalar, "another scale of its queries"),
    ):
        if is_wrong:
            raise ConversionError(
                f"This model has {what}; a GGUF file of Gemma 3 cannot say so. "
                "Write another format, such as 'hub'."
            )
