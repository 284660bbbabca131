"""From a conversation to what the model reads: token ids, image positions and pixels. No torch.

Reading order: `tokenizer` (text and ids), `format` (the numbers of one checkpoint), `template` (the
turns), `crops` and `pixels` (the pictures), `prompt` (the result), `prepare` (all of it together).
"""

from gemma3vl_app.prompting.crops import crop_boxes
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.pixels import image_key, pixels
from gemma3vl_app.prompting.prepare import Recall, prepare
from gemma3vl_app.prompting.prompt import ImageInput, PreparedPrompt, common_prefix, extended
from gemma3vl_app.prompting.tokenizer import TextTokenizer, TokenDecoder

__all__ = [  # noqa: RUF022 - grouped by subject, in reading order
    # Text and ids
    "TextTokenizer",
    "TokenDecoder",
    # The numbers of one checkpoint
    "PromptFormat",
    # Pictures
    "crop_boxes",
    "image_key",
    "pixels",
    # The prompt
    "ImageInput",
    "PreparedPrompt",
    "common_prefix",
    "extended",
    # Conversation -> prompt
    "Recall",
    "prepare",
]
