"""Gemma 3's tokenizer out of a GGUF file's vocabulary: tokens with scores become BPE merges.

Knows the kind of vocabulary that llama.cpp writes for Gemma 3; knows nothing of weights.
"""

from __future__ import annotations

import re
from typing import Any

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.gguf_header import SHOWN, Reader
from gemma3vl_app.loading.gguf_values import optional, value

# Kinds of token in a GGUF vocabulary (llama.cpp's llama_token_type)
CONTROL, USER_DEFINED, UNUSED, BYTE = 3, 4, 5, 6
PADDING = re.compile(r"\[PAD\d+\]")  # rows of the embedding that no token has
MAX_TOKEN_CHARS = 200  # Gemma's longest has 93; splitting a token takes the square of its length

SPECIAL_TOKENS = frozenset(
    {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"}
    | {"<start_of_image>", "<end_of_image>", "<image_soft_token>"}
)
BEGIN_OF_IMAGE, END_OF_IMAGE = "<start_of_image>", "<end_of_image>"
IMAGE_TOKEN = "<image_soft_token>"  # the first id after the text-only vocabulary
SPACE_MARK = "\u2581"


def read_tokenizer(reader: Reader) -> dict[str, Any]:
    """Return the file's vocabulary as a tokenizer.json of the `tokenizers` library.

    It equals Google's own file: same ids, same added tokens, same merges in the same order. Raises
    `LoadError` for another kind of vocabulary.
    """
    tokens, scores, kinds = vocabulary(reader)
    added = [
        (id_, text)
        for id_, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    if IMAGE_TOKEN not in tokens:  # the converter knows only SentencePiece's own tokens
        added.append((len(tokens), IMAGE_TOKEN))
    bos = control_id(reader, "bos", "<bos>")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(*entry) for entry in added],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": _begin_with(tokens[bos], bos),
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
        if kind in (CONTROL, UNUSED, BYTE):
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


def vocabulary(reader: Reader) -> tuple[list[str], list[float], list[int]]:
    """Return tokens, scores and kinds, as BPE sees them, without the padding at the end."""
    if (kind := value(reader, "tokenizer.ggml.model")) != "llama":
        raise LoadError(
            f"The GGUF file's vocabulary is of kind {str(kind)[:SHOWN]!r}; expected 'llama', as "
            "llama.cpp converts Gemma 3's tokenizer.model. Take another conversion."
        )
    texts = list(_array(reader, "tokens", str))
    scores = [float(score) for score in _array(reader, "scores", float)]
    kinds = [int(kind) for kind in _array(reader, "token_type", int)]
    if not len(texts) == len(scores) == len(kinds):
        raise LoadError("The GGUF file's vocabulary is damaged: its lists differ in length.")
    while texts and kinds[-1] == UNUSED and PADDING.fullmatch(texts[-1]):
        del texts[-1], scores[-1], kinds[-1]
    # Some releases mark their control tokens as plain text
    kinds = [
        CONTROL if text in SPECIAL_TOKENS else kind for text, kind in zip(texts, kinds, strict=True)
    ]
    # llama.cpp spells the runs of spaces with spaces; BPE sees them after normalisation
    tokens = [
        text.replace(" ", SPACE_MARK) if kind == USER_DEFINED else text
        for text, kind in zip(texts, kinds, strict=True)
    ]
    if max(map(len, tokens), default=0) > MAX_TOKEN_CHARS:
        raise LoadError("The GGUF file's vocabulary is damaged: a token in it is too long.")
    return tokens, scores, kinds


def token_id(reader: Reader, text: str) -> int | None:
    """Return the id of a control token: where it stands, or for pictures where it is added."""
    tokens = _array(reader, "tokens", str)
    if text in tokens:
        return int(tokens.index(text))
    return len(vocabulary(reader)[0]) if text == IMAGE_TOKEN else None


def control_id(reader: Reader, key: str, text: str) -> int:
    """Return the id that the header gives for a token, or else the place of its usual text."""
    tokens = _array(reader, "tokens", str)
    given = optional(reader, f"tokenizer.ggml.{key}_token_id")
    if given is None and text in tokens:
        return int(tokens.index(text))
    known = isinstance(given, int) and 0 <= given < len(tokens)
    if not known or PADDING.fullmatch(tokens[given]):
        raise LoadError(f"The GGUF file's vocabulary has no usable {text} token.")
    return int(given)


def _array(reader: Reader, key: str, kind: type) -> list[Any]:
    contents = value(reader, f"tokenizer.ggml.{key}")
    if not isinstance(contents, list) or not all(isinstance(each, kind) for each in contents):
        raise LoadError(f"The GGUF file's vocabulary is damaged: its {key!r} are of another kind.")
    return contents
