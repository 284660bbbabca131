"""Gemma 3's tokenizer as llama.cpp's vocabulary: tokens with scores and kinds, from tokenizer.json.

llama.cpp joins the two neighbours whose joined token has the best score first; tokenizer.json
lists its merges best first. Gemma numbers its tokens in the order of their merges, so the order of
ids gives the scores, which is made sure of. `loading.gguf_vocabulary` reads it back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.checkpoint import read_json
from gemma3vl_app.loading.gguf_vocabulary import SPACE_MARK, SPECIAL_TOKENS

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# What llama.cpp's converter takes for control tokens, whatever a tokenizer says of them
CONTROL_TOKENS = re.compile(r"<unused\d+>|<mask>|<2mass>|\[@BOS@\]")
ADDED_SCORE, BYTE_SCORE, PADDING_SCORE = -1000.0, 0.0, -10_000.0  # the converter's, too

# What `prompting.template` renders, for tokenizers that come without a template of their own
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- set system = '' -%}
{%- if messages[0].role == 'system' -%}
    {%- set content = messages[0].content -%}
    {%- set system = (content if content is string else content[0].text) + '\\n\\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' -}}
    {{- system if loop.first else '' -}}
    {%- if message.content is string -%}
        {{- message.content | trim -}}
    {%- else -%}
        {%- for part in message.content -%}
            {{- '<start_of_image>' if part.type == 'image' else part.text | trim -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{{- '<start_of_turn>model\\n' if add_generation_prompt else '' -}}
"""


@dataclass(frozen=True)
class Vocabulary:
    """A token for each row of the embedding, with its score and kind."""

    tokens: list[str]
    scores: list[float]
    kinds: list[TokenType]

    def id_of(self, token: str) -> int:
        """Return the id of a token that Gemma 3 has; raises `LoadError` where it is missing."""
        if token not in self.tokens:
            raise LoadError(
                f"tokenizer.json knows no {token}: it is not Gemma 3's. Copy it from the original."
            )
        return self.tokens.index(token)


def read_vocabulary(tokenizer_file: Path, rows: int) -> Vocabulary:
    """Return tokenizer.json as a vocabulary of `rows` tokens; those without a text are padding.

    Raises `LoadError` for a tokenizer of another kind than Gemma 3's.
    """
    parsed = read_json(tokenizer_file, tokenizer_file.parent.name)
    try:
        return _vocabulary(parsed, rows)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _other_kind("it lacks what a tokenizer has") from error


def _vocabulary(parsed: dict[str, Any], rows: int) -> Vocabulary:
    model = parsed["model"]
    if model["type"] != "BPE" or not model["byte_fallback"]:
        raise _other_kind("it is no BPE with single bytes to fall back on")
    # 1) The tokens that have a row, and what kind each is
    texts = {id_: text for text, id_ in model["vocab"].items()}
    added = {each["id"]: each for each in parsed["added_tokens"] if each["id"] < rows}
    texts |= {id_: each["content"] for id_, each in added.items()}
    if max(texts) >= rows:
        raise _other_kind(f"it has {max(texts) + 1} tokens, and the model has {rows}")
    kinds = {id_: _kind(text, added.get(id_)) for id_, text in texts.items()}
    # 2) Their scores
    normal = [id_ for id_ in sorted(texts) if kinds[id_] == TokenType.NORMAL]
    _check_order(model["merges"], {texts[id_]: id_ for id_ in normal})
    scores = dict.fromkeys(texts, BYTE_SCORE) | dict.fromkeys(added, ADDED_SCORE)
    scores |= {id_: -float(rank) for rank, id_ in enumerate(normal)}
    # 3) One for each row
    spelled = {id_: _spelled(text, kinds[id_]) for id_, text in texts.items()}
    return Vocabulary(
        tokens=[spelled.get(id_, f"[PAD{id_}]") for id_ in range(rows)],
        scores=[scores.get(id_, PADDING_SCORE) for id_ in range(rows)],
        kinds=[kinds.get(id_, TokenType.UNUSED) for id_ in range(rows)],
    )


def add_tokenizer(writer: gguf.GGUFWriter, vocabulary: Vocabulary, template: str) -> None:
    """Put a vocabulary and a chat template into a file's header."""
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.kinds)
    writer.add_bos_token_id(vocabulary.id_of("<bos>"))
    writer.add_eos_token_id(vocabulary.id_of("<eos>"))
    writer.add_eot_token_id(vocabulary.id_of("<end_of_turn>"))
    writer.add_unk_token_id(vocabulary.id_of("<unk>"))
    writer.add_pad_token_id(vocabulary.id_of("<pad>"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(template)


def chat_template(folder: Path) -> str:
    """Return the chat template that lies in a checkpoint's folder, or else Gemma 3's."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        given = read_json(path, folder.name).get("chat_template") if path.is_file() else None
        if isinstance(given, str):
            return given
    return CHAT_TEMPLATE


def _kind(text: str, added: dict[str, Any] | None) -> TokenType:
    if added is None:
        return TokenType.BYTE if BYTE_TOKEN.fullmatch(text) else TokenType.NORMAL
    is_control = added["special"] or text in SPECIAL_TOKENS or CONTROL_TOKENS.fullmatch(text)
    return TokenType.CONTROL if is_control else TokenType.USER_DEFINED


def _spelled(text: str, kind: TokenType) -> str:
    """Return a token as llama.cpp spells it: runs of spaces, which it looks for first, as such."""
    return text.replace(SPACE_MARK, " ") if kind == TokenType.USER_DEFINED else text


def _check_order(merges: list[Any], ids: dict[str, int]) -> None:
    """Raise `LoadError` unless merges come in the order of the ids of what they give."""
    last = -1
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        id_ = ids.get(left + right)
        if id_ is None:  # of an added token
            continue
        if id_ < last:
            raise _other_kind("its merges are in another order than its tokens")
        last = id_


def _other_kind(why: str) -> LoadError:
    return LoadError(f"tokenizer.json is not Gemma 3's: {why}. Copy it from the original model.")
