"""Pan-and-scan boxes: equal to the reference's, and "auto" crops where it pays."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma3vl_app.prompting import crop_boxes

sides = st.integers(1, 6000)


def reference_boxes(processor, width, height, format):
    """Cut a picture whose pixels are their own coordinates, and read the boxes off the crops."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.int32)
    crops = processor.image_processor.pan_and_scan(
        np.stack([rows, columns]),
        format.min_crop_size,
        format.max_crops,
        format.min_crop_ratio,
    )
    return tuple(
        (int(c[1, 0, 0]), int(c[0, 0, 0]), int(c[1, -1, -1]) + 1, int(c[0, -1, -1]) + 1)
        for c in crops
    )


@given(width=sides, height=sides)
@settings(max_examples=60, deadline=None)
def test_boxes_equal_the_reference_s(processor, format, width, height):
    expected = reference_boxes(processor, width, height, format)
    assert crop_boxes(width, height, "on", format) == expected


@given(
    width=st.integers(40, 300),
    height=st.integers(40, 300),
    min_crop=st.integers(8, 64),
    most=st.integers(1, 6),
    ratio=st.floats(1, 3),
)
@settings(max_examples=300, deadline=None)
def test_boxes_equal_the_reference_s_under_other_settings(
    processor, format, width, height, min_crop, most, ratio
):
    other = dataclasses.replace(
        format, min_crop_size=min_crop, max_crops=most, min_crop_ratio=ratio
    )
    expected = reference_boxes(processor, width, height, other)
    assert crop_boxes(width, height, "on", other) == expected


@given(width=sides, height=sides)
@settings(deadline=None)
def test_a_turned_picture_is_cut_at_the_same_places(format, width, height):
    turned = tuple((t, l, b, r) for l, t, r, b in crop_boxes(width, height, "on", format))  # noqa: E741
    if width != height:
        assert crop_boxes(height, width, "on", format) == turned


@given(width=sides, height=sides)
@settings(deadline=None)
def test_auto_is_either_on_or_off_and_never_crops_a_small_picture(format, width, height):
    auto = crop_boxes(width, height, "auto", format)
    assert auto in ((), crop_boxes(width, height, "on", format))
    if max(width, height) <= format.image_size:
        assert auto == ()


@pytest.mark.parametrize(
    ("width", "height", "count"),
    [
        (1920, 1080, 2),  # a screenshot
        (1240, 1754, 2),  # an A4 page at 150 dpi
        (4000, 1000, 4),  # a panorama
        (1280, 720, 0),  # crops would show only 1.43 times as much
        (800, 200, 0),  # nothing is lost in the whole picture
        (3000, 3000, 0),  # square
    ],
)
def test_auto_crops_where_it_shows_markedly_more(format, width, height, count):
    assert len(crop_boxes(width, height, "auto", format)) == count


def test_off_and_text_only_models_have_no_crops(format):
    assert crop_boxes(4000, 1000, "off", format) == ()
    assert crop_boxes(4000, 1000, "on", dataclasses.replace(format, image_tokens=0)) == ()
