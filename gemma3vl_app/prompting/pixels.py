"""From a picture to the numbers the vision tower reads, and the key of what it makes of them.

Bit-equal to transformers' PIL processor for Gemma 3. Knows nothing of tokens or torch.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from gemma3vl_app.generation import Box
from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.prompt import ImageInput


def pixels(image: ImageInput, format: PromptFormat) -> npt.NDArray[np.float32]:
    """Return the pixels of a picture or its crop: float32 (3, S, S), where S = `image_size`.

    The picture is resized to a square without keeping its aspect ratio, as the model was trained.
    """
    resized = np.asarray(squared(image, format))  # (S, S, 3)
    # The reference scales in float64, rounds to float32, and normalises in float32.
    scaled = (resized.astype(np.float64) * format.rescale_factor).astype(np.float32)
    mean = np.asarray(format.mean, dtype=np.float32)
    std = np.asarray(format.std, dtype=np.float32)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))  # (3, S, S)


def squared(image: ImageInput, format: PromptFormat) -> Image.Image:
    """Return a picture or its crop as the square that becomes `pixels`, before normalising."""
    picture = image.picture.rgb
    if image.box is not None:
        picture = picture.crop(image.box)
    size = (format.image_size, format.image_size)
    return picture.resize(size, resample=Image.Resampling(format.resample))


def image_key(picture: Picture, box: Box | None, format: PromptFormat) -> bytes:
    """Return a 32-byte digest of all that `pixels` depends on: equal keys, equal pixels."""
    settings = (format.image_size, format.resample, format.rescale_factor, format.mean, format.std)
    return hashlib.sha256(repr((picture.sha256, box, settings)).encode()).digest()
