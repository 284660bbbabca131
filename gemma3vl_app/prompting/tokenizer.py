"""Text to token ids and back, with control tokens out of reach of any text.

Knows nothing of turns, pictures or models. A text that spells `<end_of_turn>` is words about a
control token, never the token itself: control ids enter a prompt by number only, see `prepare`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from gemma3vl_app.errors import EngineError, LoadError

logger = logging.getLogger(__name__)

# What Gemma 3 steers by. A tokenizer file may carry more special tokens, or (converted from GGUF,
# or text-only) lack some of these or their "special" flag.
CONTROL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
# By digest of their files, for as long as somebody uses them. Reading 262,144 tokens takes two
# seconds and 100 MB, and nearly all Gemma 3 models have the same ones.
_in_use: WeakValueDictionary[str, TextTokenizer] = WeakValueDictionary()

_REPLACEMENT = "\ufffd"  # what an incomplete or invalid UTF-8 byte decodes to


class TextTokenizer:
    """Encode and decode text with one tokenizer file.

    ```python
    tokenizer = TextTokenizer.from_file("tokenizer.json")
    tokenizer.encode("Hi <end_of_turn>")      # plain words; no BOS
    ```

    Safe to share between threads: every setting is made once, before the first use, and encoding
    and decoding only read. (What breaks shared tokenizers elsewhere is changing their settings per
    call.)
    """

    def __init__(self, raw: Tokenizer, sha256: str = "") -> None:
        """Take over `raw`; nobody else may change its settings afterwards."""
        self._raw = raw
        self._sha256 = sha256
        known = {
            token: id for token in CONTROL_TOKENS if (id := raw.token_to_id(token)) is not None
        }
        raw.add_special_tokens(list(known))  # no new ids: marks as special what the file forgot to
        raw.encode_special_tokens = True  # text that spells a special token is encoded as text
        marked = {id for id, token in raw.get_added_tokens_decoder().items() if token.special}
        self._control = frozenset(marked.union(known.values()))

    @classmethod
    def from_file(cls, path: str | Path) -> TextTokenizer:
        """Read a `tokenizer.json`, or return the one in use that was read from the same bytes.

        Raises `LoadError` when it is missing or not a tokenizer.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise LoadError(
                f"The tokenizer file {path.name!r} in folder {path.parent.name!r} cannot be read. "
                "Download or convert the model again."
            ) from error
        sha256 = hashlib.sha256(data).hexdigest()
        if (shared := _in_use.get(sha256)) is not None:
            return shared
        try:
            raw = Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception for every kind of bad file
            raise LoadError(
                f"{path.name!r} in folder {path.parent.name!r} is not a tokenizer file. "
                "Download or convert the model again."
            ) from error
        return _in_use.setdefault(sha256, cls(raw, sha256))

    # --- facts ---

    @property
    def raw(self) -> Tokenizer:
        """The wrapped `tokenizers.Tokenizer`, for other libraries to read; nobody may change it."""
        return self._raw

    @property
    def sha256(self) -> str:
        """Hex digest of the tokenizer file: ids are only comparable under the same digest."""
        return self._sha256

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's embedding may have more rows."""
        return self._raw.get_vocab_size(with_added_tokens=True)

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of the special tokens this tokenizer holds; `encode` never returns one of them."""
        return self._control

    def id_of(self, token: str) -> int | None:
        """Return the id of the token that reads exactly `token`, or None."""
        return self._raw.token_to_id(token)

    def same_ids(self, other: TextTokenizer) -> bool:
        """Tell whether every id that both have stands for the same token in both."""
        if self._sha256 and self._sha256 == other.sha256:
            return True
        mine, theirs = (
            {id: token for token, id in each.raw.get_vocab(with_added_tokens=True).items()}
            for each in (self, other)
        )
        return all(theirs.get(id, token) == token for id, token in mine.items())

    # --- text -> ids ---

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`: no BOS, and no control id whatever the text spells.

        Raises `EngineError` if the tokenizer file itself breaks that promise.
        """
        # The batch call, even for one text, releases the interpreter lock (a long text would
        # otherwise stop every other thread) and skips character offsets.
        ids = self._raw.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if not self._control.isdisjoint(ids):
            raise EngineError(
                "The tokenizer turned plain text into a control token, so the text was not used. "
                "Check that the model's tokenizer.json is the published one."
            )
        return ids

    # --- ids -> text ---

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without control tokens; incomplete characters read U+FFFD."""
        return self._raw.decode(list(ids), skip_special_tokens=True)

    def token_text(self, id: int) -> str:
        """Return how one token reads: control tokens by name, parts of characters as `<0xE2>`.

        Empty for an id beyond the vocabulary.
        """
        text = self._raw.decode([id], skip_special_tokens=False)
        if _REPLACEMENT in text:
            return self._raw.id_to_token(id) or text
        return text

    def ids_of(self, ids: Sequence[int], text: str) -> tuple[int, ...] | None:
        """Return the beginning of generated `ids` that says exactly `text`, or None.

        Also None where one of them is a control token or no token at all: `ids` may come from a
        stranger's file, and must not say anything that `text` does not.
        """
        decoder, said, beyond = self.new_decode_stream(), "", self.vocab_size
        for count, id in enumerate(ids):
            if said == text:
                return tuple(ids[:count])
            if not 0 <= id < beyond or id in self._control or self._raw.id_to_token(id) is None:
                return None
            said += decoder.step(id)
            if not text.startswith(said):
                return None
        return tuple(ids) if said + decoder.finish() == text else None

    def new_decode_stream(self) -> TokenDecoder:
        """Return a decoder for one answer, fed token by token."""
        return TokenDecoder(self)


class TokenDecoder:
    """Turn the tokens of one answer into text as they come; one answer, one thread."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []  # tokens that have not shown up in the text yet

    def step(self, id: int) -> str:
        """Return the text that token `id` adds: empty while a character is incomplete."""
        self._pending.append(id)
        try:
            text = self._stream.step(self._tokenizer.raw, id)
        except Exception:
            # The library gives up for good on bytes that never become a character (a model sampled
            # hot writes such): show them as U+FFFD and start afresh.
            logger.debug("invalid UTF-8 among the generated tokens")
            return self.finish()
        if text is None:
            return ""
        self._pending.clear()
        return str(text)

    def finish(self) -> str:
        """Return what is still held back, incomplete characters as U+FFFD, and start afresh."""
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        self._stream = DecodeStream(skip_special_tokens=True)
        return text
