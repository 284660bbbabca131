"""From a conversation to a prepared prompt: template, crops, tokens, image places.

Text between two control tokens is put together first and encoded as one string, so that every id
equals the reference's; control tokens are added by number, so no text can bring one in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from gemma3vl_app.generation import Box
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting.crops import crop_boxes
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.pixels import image_key
from gemma3vl_app.prompting.prompt import Ids, ImageInput, PreparedPrompt
from gemma3vl_app.prompting.template import (
    AFTER_IMAGE,
    BEFORE_CROPPED,
    BEFORE_CROPS,
    BEFORE_IMAGE,
    BETWEEN_CROPS,
    AnswerText,
    Control,
    render,
    validate,
)
from gemma3vl_app.prompting.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

Recall = Callable[[PreparedPrompt, str], Sequence[int] | None]


def prepare(
    conversation: Conversation,
    tokenizer: TextTokenizer,
    format: PromptFormat,
    *,
    recall: Recall | None = None,
) -> PreparedPrompt:
    """Return the prompt after which the model writes the next answer.

    `recall(prompt_so_far, text)` may return the ids that were generated for an assistant message
    (without the stop token): they are used as they are, so that cached keys and values stay valid;
    None, or ids with a control token among them, means the text is encoded again. Raises
    `ConversationError` before any work if some message cannot be used.
    """
    validate(conversation, takes_pictures=format.image_tokens > 0)
    builder = _Builder(tokenizer, format)
    for piece in render(conversation):
        match piece:
            case str():
                builder.add_text(piece)
            case Control():
                builder.add_control(getattr(format, piece.value))
            case AnswerText():
                builder.add_answer(piece, recall)
            case _:
                builder.add_picture(piece)
    return builder.prompt()


class _Builder:
    """Collect the pieces of one prompt; text waits in `_text` until something else ends it."""

    def __init__(self, tokenizer: TextTokenizer, format: PromptFormat) -> None:
        self._tokenizer = tokenizer
        self._format = format
        self._text: list[str] = []
        self._ids: list[Ids] = []
        self._length = 0
        self._images: list[ImageInput] = []
        self._crops: list[tuple[Box, ...]] = []
        self._answer_start: int | None = None

    def add_text(self, text: str) -> None:
        self._text.append(text)

    def add_control(self, id: int) -> None:
        self._flush()
        self._append([id])
        self._answer_start = None

    def add_picture(self, picture: Picture) -> None:
        boxes = crop_boxes(picture.width, picture.height, picture.crops, self._format)
        self._crops.append(boxes)
        if not boxes:
            self._add_image(picture, None)
            return
        self.add_text(BEFORE_CROPPED)
        self._add_image(picture, None)
        self.add_text(BEFORE_CROPS)
        for number, box in enumerate(boxes):
            if number > 0:
                self.add_text(BETWEEN_CROPS)
            self._add_image(picture, box)

    def add_answer(self, answer: AnswerText, recall: Recall | None) -> None:
        so_far = self.prompt()
        self._answer_start = self._length
        ids = recall(so_far, answer.given) if recall is not None else None
        if ids is not None and self._is_plain(ids):
            self._append(ids)
        else:
            self.add_text(answer.rendered)

    def prompt(self) -> PreparedPrompt:
        """Return all that was added so far."""
        self._flush()
        ids = np.concatenate(self._ids)
        self._ids = [ids]  # the next call joins only what came since
        start = len(ids) if self._answer_start is None else self._answer_start
        return PreparedPrompt(ids, tuple(self._images), tuple(self._crops), start)

    def _add_image(self, picture: Picture, box: Box | None) -> None:
        format = self._format
        self.add_text(BEFORE_IMAGE)
        self._flush()
        self._append([format.boi])
        start, stop = self._length, self._length + format.image_tokens
        self._images.append(ImageInput(image_key(picture, box, format), picture, box, start, stop))
        self._append(np.full(format.image_tokens, format.soft))
        self._append([format.eoi])
        self.add_text(AFTER_IMAGE)

    def _is_plain(self, ids: Sequence[int]) -> bool:
        control = self._tokenizer.control_ids | self._format.control_ids
        if control.isdisjoint(int(id) for id in ids):
            return True
        logger.warning("recalled ids hold a control token; the answer's text is encoded again")
        return False

    def _flush(self) -> None:
        text = "".join(self._text)
        self._text.clear()
        if text:
            self._append(self._tokenizer.encode(text))

    def _append(self, ids: Sequence[int] | Ids) -> None:
        array = np.asarray(ids, dtype=np.int64)
        self._ids.append(array)
        self._length += len(array)
