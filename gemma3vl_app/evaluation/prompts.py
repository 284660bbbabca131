"""From an item to a conversation: its pictures, where the question names them or before it."""

from __future__ import annotations

import re

from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.suites import Suite
from gemma3vl_app.messages import Conversation, Part, Text
from gemma3vl_app.pictures import Crops

_PLACE = re.compile(r"<image (\d{1,3})>")  # as MMMU says where a picture belongs


def conversation_of(suite: Suite, item: Item, crops: Crops) -> Conversation:
    """Open an item's pictures and return what the model is asked; raises `PictureError`.

    A picture stands at its first "<image 1>" of the text; those that have no place come first.
    """
    pictures = [picture.open().with_crops(crops) for picture in item.pictures]
    left = dict(enumerate(pictures, start=1))
    parts: list[Part] = []
    pieces = _PLACE.split(suite.ask(item))  # text, number, text, number, ..., text
    for at, piece in enumerate(pieces):
        if at % 2 == 0:
            parts.append(Text(piece))
        elif (picture := left.pop(int(piece), None)) is not None:
            parts.append(picture)
        else:
            parts.append(Text(f"<image {piece}>"))
    said = [part for part in parts if not isinstance(part, Text) or part.text]
    return Conversation().user(*left.values(), *said)
