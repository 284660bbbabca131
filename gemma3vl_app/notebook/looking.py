"""What the model gets to see of a picture, what that costs, and pictures side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from gemma3vl_app.backends.protocol import Backend, SeesPictures
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.messages import Conversation, Message
from gemma3vl_app.notebook import thumbnails
from gemma3vl_app.notebook.shown import MUTED, Shown
from gemma3vl_app.pictures import Crops, Picture, PictureSource
from gemma3vl_app.plain import plain

_SEEN_SIDE = 280  # pixels on the page; the file's own are all there


def seen(backend: Backend, picture: PictureSource, *, crops: Crops = "auto") -> Shown:
    """Show the exact pixels that reach the model: the squashed whole, then each crop.

    Raises `ConversationError` where the model is not in this process and cannot tell.
    """
    opened = Picture.open(picture, crops=crops)
    if not isinstance(backend, SeesPictures):
        raise ConversationError(
            f"{backend.capabilities.model} runs elsewhere, and does not tell what it sees."
        )
    images = backend.seen(opened)
    each = backend.capabilities.image_tokens
    names = ["the whole", *(f"crop {n}" for n in range(1, len(images)))]
    lines = [
        f"{name} · {image.width} x {image.height} · {each:,} tokens"
        for name, image in zip(names, images, strict=True)
    ]
    figures = (
        thumbnails.figure(image, line, side=_SEEN_SIDE, exact=True)
        for image, line in zip(images, lines, strict=True)
    )
    head = f"What the model sees of {thumbnails.label(opened)}"
    return Shown(
        f'<div style="{MUTED}">{escape(head)}</div>{"".join(figures)}',
        plain("\n".join([head, *lines])),
    )


def cost(backend: Backend, picture: PictureSource) -> Shown:
    """Show where a picture would be cut into crops, and the tokens of each choice of `crops`."""
    opened = Picture.open(picture)
    choices: tuple[Crops, ...] = ("off", "auto", "on")
    lines, figures = [], []
    for crops in choices:
        message = Message("user", (opened.with_crops(crops),))
        preview = backend.preview(Conversation((message,)))
        boxes = preview.crops[0]
        line = f'crops="{crops}" · {len(boxes)} crops · {preview.image_tokens:,} picture tokens'
        lines.append(line)
        parts = thumbnails.cropped(opened, boxes)
        figures.append(
            f'<div style="{MUTED}">{escape(line)}</div>'
            + "".join(
                thumbnails.figure(part, f"{part.width} x {part.height}", side=150)
                for part in (opened.rgb, *parts)
            )
        )
    return Shown("".join(figures), "\n".join(lines))


def grid(
    pictures: Iterable[PictureSource], captions: Sequence[str] = (), *, side: int = 220
) -> Shown:
    """Show pictures side by side, each with its caption, or its name where there is none."""
    opened = [Picture.open(picture) for picture in pictures]
    if captions and len(captions) != len(opened):
        raise ConversationError(
            f"There are {len(opened)} pictures and {len(captions)} captions; give one for each."
        )
    lines = list(captions) or [thumbnails.label(picture) for picture in opened]
    figures = (
        thumbnails.figure(picture.rgb, line, side=side)
        for picture, line in zip(opened, lines, strict=True)
    )
    return Shown(
        f'<div style="display:flex;flex-wrap:wrap;align-items:flex-end">{"".join(figures)}</div>',
        plain("\n".join(lines)),
    )
