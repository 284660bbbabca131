"""Pixels: bit-equal to the reference processor, and a key for everything they depend on."""

import dataclasses

import numpy as np
import pytest

from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting import ImageInput, image_key, pixels, prepare


@pytest.mark.parametrize(
    "size", [(1, 1), (30, 100), (100, 30), (896, 896), (1000, 400), (700, 1900)]
)
def test_pixels_equal_the_reference_s_bit_by_bit(processor, tokenizer, format, photo, size):
    picture = photo(*size, crops="on")
    prompt = prepare(Conversation().user(picture), tokenizer, format)
    expected = processor.image_processor(
        [picture.rgb],
        do_convert_rgb=True,
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=256,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )["pixel_values"]
    ours = [pixels(image, format) for image in prompt.images]
    assert len(ours) == len(expected)
    for mine, reference in zip(ours, expected, strict=True):
        assert mine.dtype == np.float32
        assert mine.flags.c_contiguous
        assert np.array_equal(mine, np.asarray(reference))


def test_other_processor_settings_give_the_reference_s_pixels_too(processor, format, photo):
    other = dataclasses.replace(
        format, image_size=56, resample=3, mean=(0.48, 0.45, 0.4), std=(0.27, 0.26, 0.3)
    )
    picture = photo(90, 70)
    expected = processor.image_processor(
        [picture.rgb],
        size={"height": 56, "width": 56},
        resample=3,
        image_mean=list(other.mean),
        image_std=list(other.std),
    )["pixel_values"][0]
    mine = pixels(ImageInput(b"", picture, None, 0, 0), other)
    assert np.array_equal(mine, np.asarray(expected))


def test_a_key_changes_with_everything_that_changes_pixels(format, photo):
    picture = photo(60, 40)
    changed = [
        dataclasses.replace(format, image_size=448),
        dataclasses.replace(format, resample=3),
        dataclasses.replace(format, rescale_factor=1 / 256),
        dataclasses.replace(format, mean=(0.4, 0.5, 0.5)),
        dataclasses.replace(format, std=(0.4, 0.5, 0.5)),
    ]
    keys = {
        image_key(picture, None, format),
        image_key(picture, (0, 0, 30, 40), format),
        image_key(picture, (30, 0, 60, 40), format),
        image_key(photo(60, 40, seed=1), None, format),
        *(image_key(picture, None, other) for other in changed),
    }
    assert len(keys) == 9
    assert {len(key) for key in keys} == {32}


def test_a_key_does_not_change_with_name_crops_or_other_settings(format, photo):
    picture = photo(60, 40)
    renamed = dataclasses.replace(picture, name="other", crops="on")
    assert image_key(picture, None, format) == image_key(renamed, None, format)
    other = dataclasses.replace(format, max_crops=2, stop_ids=frozenset({1}))
    assert image_key(picture, None, format) == image_key(picture, None, other)


def test_shapes_with_the_same_bytes_are_different_pictures(format):
    wide = Picture.open(np.zeros((30, 100, 3), np.uint8))
    tall = Picture.open(np.zeros((100, 30, 3), np.uint8))
    assert image_key(wide, None, format) != image_key(tall, None, format)
