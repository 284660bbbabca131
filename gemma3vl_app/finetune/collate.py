"""From an example to what the model is trained on: the prompt's own ids, and labels on answers.

The ids come from `prompting.prepare`, the very code that makes prompts for answers, so that a model
is trained on what it will read. Shapes: B examples, L tokens, I pictures and crops, S image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.finetune.examples import Example
from gemma3vl_app.messages import Conversation, Message, Text
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.pixels import pixels
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.prompt import Ids, ImageInput, PreparedPrompt
from gemma3vl_app.prompting.tokenizer import TextTokenizer

IGNORED = -100  # the label of tokens that are not learned, as in torch and transformers
PAD_ID = 0  # <pad> in every Gemma vocabulary; padding is masked, so that any id would do

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class EncodedExample:
    """A conversation in tokens: ids, token types (1 in pictures) and labels, each int64 (L,)."""

    ids: Ids
    token_types: Ids
    labels: Ids
    images: tuple[ImageInput, ...]

    def __len__(self) -> int:
        return len(self.ids)


def encode(
    conversation: Conversation, tokenizer: TextTokenizer, format: PromptFormat
) -> EncodedExample:
    """Return the tokens of a conversation; its last message is an answer.

    Every answer is learned, with the end-of-turn token behind it; all else is labelled -100. Raises
    `ConversationError` if some message cannot be used.
    """
    if not conversation.messages or conversation.messages[-1].role != "assistant":
        raise ConversationError("The conversation does not end with an answer.")
    starts: list[int] = []

    def note_start(so_far: PreparedPrompt, text: str) -> None:
        starts.append(len(so_far))

    prompt = prepare(_closed(conversation), tokenizer, format, recall=note_start)
    # `prepare` leaves the last turn open, for the model to go on; here it has said all.
    ids = np.append(prompt.ids, format.end_of_turn)
    labels = np.full(len(ids), IGNORED, dtype=np.int64)
    ends = np.flatnonzero(ids == format.end_of_turn)
    for start in starts:
        stop = int(ends[np.searchsorted(ends, start)]) + 1  # no answer holds a control token
        labels[start:stop] = ids[start:stop]
    return EncodedExample(ids, np.append(prompt.token_types, 0), labels, prompt.images)


def _closed(conversation: Conversation) -> Conversation:
    """Trim the last message's end, as the template trims every finished answer."""
    *others, last = conversation.messages
    return replace(
        conversation, messages=(*others, Message("assistant", (Text(last.text.strip()),)))
    )


class Collator:
    """Make a padded batch of examples, for transformers' `Trainer` or any loop.

    A batch holds `input_ids`, `token_type_ids`, `attention_mask` and `labels` (B, L), and
    `pixel_values` (I, 3, S, S) where there are pictures. The token types always go along: without
    them the model reads pictures causally, and nobody tells.
    """

    def __init__(
        self, tokenizer: TextTokenizer, format: PromptFormat, *, always_pictures: bool = False
    ) -> None:
        """Use one checkpoint's tokenizer and format.

        With `always_pictures` a batch without one gets a grey picture in its padding, which nothing
        attends to: all processes then run the vision tower together, as sharded weights need.
        """
        self._tokenizer = tokenizer
        self._format = format
        self._always_pictures = always_pictures and format.image_tokens > 0

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Open the examples' pictures and return the batch."""
        encoded = [encode(each.conversation(), self._tokenizer, self._format) for each in examples]
        images = [image for each in encoded for image in each.images]
        dummy = self._always_pictures and not images
        length = max(map(len, encoded)) + (self._format.image_tokens if dummy else 0)
        ones = [np.ones(len(each), np.int64) for each in encoded]
        batch = {
            "input_ids": _padded([each.ids for each in encoded], length, PAD_ID),
            "attention_mask": _padded(ones, length, 0),
            "labels": _padded([each.labels for each in encoded], length, IGNORED),
        }
        if self._format.image_tokens:  # a text-only model does not know of them
            batch["token_type_ids"] = _padded([each.token_types for each in encoded], length, 0)
        if images:
            stacked = np.stack([pixels(image, self._format) for image in images])
            batch["pixel_values"] = torch.from_numpy(stacked)
        elif dummy:
            side = self._format.image_size
            batch["input_ids"][0, -self._format.image_tokens :] = self._format.soft
            batch["pixel_values"] = torch.zeros(1, 3, side, side)
        return batch


def _padded(rows: Sequence[Ids], length: int, value: int) -> torch.Tensor:
    padded = np.full((len(rows), length), value, dtype=np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(padded)


def answer_loss(
    model: nn.Module, batch: Batch, tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return the mean loss of the batch's labelled tokens, or their sum over `tokens`."""
    losses, learned = answer_losses(model, batch)
    return losses.sum() / (learned.sum() if tokens is None else tokens)


def answer_losses(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each example the loss of its labelled tokens in sum, and how many they are.

    Both are (B,). Logits are computed only where an answer is predicted: those of a whole
    conversation would take a megabyte a token.
    """
    inputs: dict[str, Any] = {key: value for key, value in batch.items() if key != "labels"}
    # What position t predicts is the token at t + 1, which the last position has not.
    targets = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # (B, L)
    learned = targets != IGNORED
    logits = model(**inputs, logits_to_keep=learned, use_cache=False).logits  # (learned, V)
    wanted = targets[learned].to(logits.device)
    each = nn.functional.cross_entropy(logits.float(), wanted, reduction="none")  # (learned,)
    rows = learned.nonzero()[:, 0].to(each.device)
    return each.new_zeros(len(learned)).index_add(0, rows, each), learned.sum(1).to(each.device)
