"""Maps: each number lands where its part of the picture is, and what is counted adds up."""

import numpy as np
import pytest

from gemma3vl_app import explain
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.explain import Heat, HeatMap
from gemma3vl_app.explain.heat import painted
from gemma3vl_app.generation import Progress
from gemma3vl_app.messages import Conversation
from gemma3vl_app.traces import Attention, Occlusion


def heat(picture, *maps: HeatMap) -> Heat:
    return Heat(method="m", says="s", words="w", pictures=(picture,), maps=maps, unit="u")


def cells(*rows) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_soft_tokens_lie_row_by_row_from_the_top_left(stand_in, talk, answer):
    found = explain.attention(stand_in, talk, answer, "red")
    assert np.allclose(found.maps[0].cells, cells([0.01, 0.02], [0.03, 0.04]))
    grid = found.grid()
    assert grid.shape == (100, 100)
    assert grid[0, 0] == grid.min() and grid[99, 99] == grid.max()


def test_a_maps_mean_is_what_it_counts(picture):
    coarse = heat(picture, HeatMap(0, None, cells([1, 2], [3, 4])))
    fine = heat(picture, HeatMap(0, None, cells([1, 2], [3, 4]).repeat(5, 0).repeat(5, 1) / 25))
    assert coarse.grid().mean() == pytest.approx(10)
    assert np.allclose(coarse.grid(), fine.grid())


def test_a_crops_heat_lies_in_its_box_and_counts_by_its_size(picture):
    crop = heat(picture, HeatMap(0, (50, 0, 100, 100), cells([1, 1], [1, 1])))
    grid = crop.grid()
    assert (grid[:, :50] == 0).all()
    assert grid.mean() == pytest.approx(4)


def test_layers_heads_and_rollout_are_passed_on(stand_in, talk, answer):
    explain.attention(stand_in, talk, answer, "red", layers=[3], heads=range(2))
    rolled = explain.attention(stand_in, talk, answer, "red", rollout=True)
    assert stand_in.asked[0][2] == Attention(tokens=(1,), layers=(3,), heads=(0, 1))
    assert stand_in.asked[1][2] == Attention(tokens=(1,), rollout=True)
    assert rolled.method == "attention rollout"


def test_each_picture_and_each_crop_gets_its_own_map(stand_in, picture, answer):
    talk = Conversation().user(picture, picture.with_crops("on"), "Compare them.")
    found = explain.saliency(stand_in, talk, answer)
    assert [(each.picture, each.box) for each in found.maps] == [
        (0, None),
        (1, None),
        (1, (0, 0, 50, 100)),
        (1, (50, 0, 100, 100)),
    ]
    assert len(found.drawn_crops(0)) == 1 and len(found.drawn_crops(1)) == 3
    assert found.signed


def test_pixels_are_asked_for_only_when_wanted(stand_in, talk, answer):
    assert explain.saliency(stand_in, talk, answer).maps[0].cells.shape == (2, 2)
    fine = explain.saliency(stand_in, talk, answer, through_tower=True)
    assert fine.maps[0].cells.shape == (8, 8)


def test_hiding_finds_the_part_that_the_answer_hangs_on(stand_in, talk, answer):
    found = explain.occlusion(stand_in, talk, answer, "red", cells=4)
    map_ = found.maps[0].cells
    assert map_.shape == (4, 4)
    assert map_[:2, :2].min() > map_[2:].max()  # the top left quarter
    assert map_[3, 3] == 0
    assert found.contrast((0, 0, 50, 50)) > 4


def test_the_squares_that_hide_cover_all_of_the_picture_and_nothing_else(stand_in, talk, answer):
    explain.occlusion(stand_in, talk, answer, "red", cells=6)
    asked = stand_in.asked[0][2]
    assert isinstance(asked, Occlusion)
    assert len(asked.regions) == 49
    assert all(0 <= x0 < x1 <= 100 and 0 <= y0 < y1 <= 100 for x0, y0, x1, y1 in asked.regions)
    covered = np.zeros((100, 100), dtype=int)
    for left, top, right, bottom in asked.regions:
        covered[top:bottom, left:right] += 1
    assert (covered == 4).all()


def test_contrast_compares_inside_with_outside_whatever_the_sign(picture):
    found = heat(picture, HeatMap(0, None, cells([-6, 1], [1, 1])))
    assert found.contrast((0, 0, 50, 50)) == pytest.approx(6)


@pytest.mark.parametrize("box", [(0, 0, 100, 100), (40, 40, 40, 40), (200, 200, 300, 300)])
def test_a_box_has_to_cover_a_part_of_the_picture(picture, box):
    with pytest.raises(ConversationError, match="cover a part"):
        heat(picture, HeatMap(0, None, cells([1]))).contrast(box)


def test_what_speaks_for_is_orange_and_what_speaks_against_is_blue(picture):
    image = np.asarray(painted(picture.rgb, cells([5, 0, -5]), full=5), dtype=int)
    left, middle, right = image[50, 5], image[50, 50], image[50, 94]
    assert left[0] > left[2] + 100
    assert right[2] > right[0] + 100
    assert abs(middle - middle.mean()).max() < 40


def test_a_map_of_nothing_is_drawn_as_the_picture(picture):
    image = np.asarray(painted(picture.rgb, np.zeros((3, 3), dtype=np.float32), full=0))
    assert image.std() == 0


@pytest.mark.parametrize("method", [explain.attention, explain.saliency, explain.occlusion])
def test_without_pictures_nothing_is_mapped(stand_in, answer, method):
    with pytest.raises(ConversationError, match="no picture"):
        method(stand_in, Conversation().user("Hello"), answer)


@pytest.mark.parametrize("method", [explain.attention, explain.saliency, explain.occlusion])
def test_each_map_says_what_it_does_not_show(stand_in, talk, answer, method):
    assert len(method(stand_in, talk, answer).says) > 40
    assert "attention is not cause" in explain.attention(stand_in, talk, answer).says


def test_a_grid_has_to_be_of_a_sensible_size(stand_in, talk, answer):
    with pytest.raises(ConversationError, match="between 2 and 64"):
        explain.occlusion(stand_in, talk, answer, cells=1)


def test_a_picture_that_is_not_there_is_refused(stand_in, talk, answer):
    with pytest.raises(ConversationError, match="There is no picture 1"):
        explain.attention(stand_in, talk, answer).drawn(1)


def test_progress_counts_over_all_pictures(stand_in, picture, answer):
    talk = Conversation().user(picture, picture, "Compare them.")
    trace, told = stand_in.trace, []

    def tracing(*asked, progress, **options):
        progress(Progress("prefill", 3, 7, "steps"))
        progress(Progress("tracing", 10, 50, "steps"))
        return trace(*asked, **options)

    stand_in.trace = tracing
    explain.occlusion(stand_in, talk, answer, progress=told.append)
    assert [(step.done, step.total) for step in told] == [(3, 7), (10, 100), (3, 7), (60, 100)]


def test_one_colour_is_one_heat_in_all_pictures_and_crops(picture):
    faint, strong = cells([1, 1], [1, 1]), cells([100, 100], [100, 100])
    maps = (HeatMap(0, None, faint), HeatMap(1, None, strong))
    found = Heat(
        method="m", says="s", words="w", pictures=(picture, picture), maps=maps, unit="nats"
    )
    assert np.asarray(found.drawn(1), dtype=int)[50, 50, 0] > 230  # orange
    assert abs(np.asarray(found.drawn(0), dtype=int)[50, 50] - 190).max() < 20  # grey
    assert found.share(1) == pytest.approx(100 / 101)
    assert found.strongest == 100


def test_fine_maps_are_averaged_not_sampled(picture):
    fine = np.zeros((200, 200), dtype=np.float32)
    fine[1::2, 1::2] = 1
    assert heat(picture, HeatMap(0, None, fine)).grid().mean() == pytest.approx(100 * 100)


def test_a_map_of_nothing_has_no_contrast(picture):
    assert heat(picture, HeatMap(0, None, cells([0]))).contrast((0, 0, 50, 50)) == 1
