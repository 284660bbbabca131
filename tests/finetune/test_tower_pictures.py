"""What the tower is shown, and what it is to say of it."""

import random
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageOps

from gemma3vl_app.finetune.tower_drawing import Drawing, draw_stage, several_processes
from gemma3vl_app.finetune.tower_pictures import (
    CELL_CHARACTERS,
    HEADS,
    NOTHING,
    Drawn,
    Stage,
    characters_of,
    claimable_characters,
    fine_mask,
    flipped,
    labels_of,
    neighbours_of,
    parts_of,
)
from gemma3vl_app.scenes.fonts import CHARACTERS
from gemma3vl_app.scenes.print_drawing import Letter
from gemma3vl_app.scenes.scene import COLOURS, PLACES, SHAPES, Scene, Thing, random_scene

MIXED = Stage(
    *("reading", 64, False, 60, 8, 6, 1e-3),
    seed=2,
    kinds=(("scene", 0.3), ("print", 0.4), ("chart", 0.3)),
)


def test_a_cell_is_labelled_with_the_thing_whose_centre_it_holds():
    thing = Thing("star", "blue", "large", True, 0.9, 0.1, 0.25, 0.0)
    scene = Scene((thing,), "white", "plain", "plain", 1.0)
    labels = labels_of(scene, 4)
    assert labels.shape == (16, len(HEADS))
    expected = [SHAPES.index("star"), COLOURS.index("blue"), 2, 1, PLACES.index(thing.place)]
    assert labels[3].tolist() == expected
    assert (np.delete(labels, 3, axis=0) == NOTHING).all()


def test_a_centre_near_a_border_is_next_to_the_cell_beyond_it():
    def near(x, y):
        thing = Thing("star", "blue", "large", True, x, y, 0.1, 0.0)
        grid = neighbours_of(Scene((thing,), "white", "plain", "plain", 1.0), 4).reshape(4, 4, 2)
        assert np.abs(grid).sum() == np.abs(grid[int(4 * y), int(4 * x)]).sum()
        return grid[int(4 * y), int(4 * x)].tolist()  # down, across

    assert near(0.375, 0.375) == [0, 0]
    assert near(0.5, 0.375) == [0, -1]
    assert near(0.49, 0.51) == [-1, 1]
    assert near(0.01, 0.99) == [0, 0]  # there is no cell beyond


def test_patches_inside_a_thing_are_a_part_of_it():
    thing = Thing("star", "blue", "large", False, 0.5, 0.5, 0.3, 0.0)
    grid = parts_of(Scene((thing,), "white", "plain", "plain", 1.0), 8).reshape(8, 8, 2)
    assert grid[3, 3].tolist() == [SHAPES.index("star"), COLOURS.index("blue")]
    assert (grid[0] == NOTHING).all()
    assert 4 <= (grid[..., 0] != NOTHING).sum() <= 16


def test_mirrored_pictures_are_labelled_as_if_drawn_so():
    scene = random_scene(random.Random(4), count=3)
    turned = replace(scene, things=tuple(replace(t, x=1 - t.x) for t in scene.things))
    pixels = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3)).astype(np.uint8)
    mask = Image.fromarray(pixels[0, :, :, 0])
    fine = [fine_mask(each, 8) for each in (mask, ImageOps.mirror(mask))]
    none = [each[None] for each in (*claimable_characters((), 4), characters_of((), 8, 2))]
    cells = labels_of(scene, 4)[None], neighbours_of(scene, 4)[None]
    drawn = Drawn.of((pixels, *cells, parts_of(scene, 8)[None], fine[0][None], *none))
    found = [flipped(drawn, np.random.default_rng(seed)) for seed in range(8)]
    mirrored = [each for each in found if (each.pixels != drawn.pixels).any()]
    assert 0 < len(mirrored) < 8
    for each in mirrored:
        assert (each.pixels.numpy() == pixels[:, :, ::-1]).all()
        assert (each.cells.numpy() == labels_of(turned, 4)).all()
        assert (each.neighbours.numpy() == neighbours_of(turned, 4)).all()
        assert (each.patches.numpy() == parts_of(turned, 8)).all()
        assert (each.masks.numpy() == fine[1]).all()


def letter(character, x, line, *, low=0.0):
    """Return a letter whose ink reaches `low` under its line."""
    return Letter(character, x - 0.02, line - 0.02 + low, x + 0.02, line + 0.02 + low, line)


def told(labels):
    """Return what is said of each part."""
    return ["".join(CHARACTERS[n] for n in part if n != NOTHING) for part in labels]


def test_characters_are_told_in_reading_order_where_their_middle_is():
    letters = [letter("H", 0.05, 0.1), letter("i", 0.2, 0.1), letter("!", 0.3, 0.1)]
    labels = characters_of(letters, 4, 2)
    assert labels.shape == (16, 2)
    assert told(labels)[:3] == ["Hi", "!", ""]
    crowded = characters_of([letter("x", 0.1, 0.1)] * 5, 4, 2)  # no more than there is room for
    assert (crowded[0] == CHARACTERS.index("x")).all()
    assert (crowded[1:] == NOTHING).all()


def test_letters_of_a_line_are_in_one_row_however_far_they_reach_down():
    labels = characters_of([letter("a", 0.1, 0.24), letter("p", 0.2, 0.24, low=0.05)], 4, 2)
    assert told(labels)[0] == "ap"
    own, border = claimable_characters([letter("p", 0.1, 0.24, low=0.05)], 4)
    assert told(own)[0] == "p"
    assert (border == NOTHING).all()


def test_one_letter_on_a_border_is_left_open_and_all_others_have_their_cell():
    letters = [letter("H", 0.1, 0.1), letter("i", 0.26, 0.1), letter("t", 0.3, 0.1)]
    own, border = claimable_characters([*letters, letter("s", 0.47, 0.1)], 4)
    assert told(own)[:4] == ["H", "t", "", ""]
    assert told(border[:, None])[:4] == ["", "i", "s", ""]


def test_of_two_letters_on_a_border_the_nearer_one_is_left_open():
    own, border = claimable_characters([letter("i", 0.23, 0.1), letter("l", 0.251, 0.1)], 4)
    assert told(own)[:2] == ["i", ""]
    assert told(border[:, None])[1] == "l"


def test_a_letter_on_a_border_beside_another_line_has_its_cell():
    lines = [letter("a", 0.26, 0.05), letter("b", 0.1, 0.2)]  # the first line ends in cell 1
    own, border = claimable_characters(lines, 4)
    assert told(own)[:2] == ["b", "a"]
    assert (border == NOTHING).all()


def test_letters_at_the_picture_s_edge_and_beyond_are_no_matter():
    own, border = claimable_characters([letter("x", 0.005, 0.1), letter("y", 1.1, 0.1)], 4)
    assert told(own)[0] == "x"
    assert (border == NOTHING).all()
    assert (own != NOTHING).sum() == 1


def test_a_reading_stage_shows_scenes_prints_and_charts(needs_fonts):
    drawn = draw_stage(MIXED, MIXED.pictures, 2, patch=8, pooled=2)
    has_things = (drawn.cells[..., 0] != NOTHING).any(1)
    has_text = (drawn.patch_characters != NOTHING).flatten(1).any(1)
    has_colour = (drawn.patches != NOTHING).flatten(1).any(1)
    assert drawn.cells.shape == (60, 16, len(HEADS))
    assert drawn.cell_characters.shape == (60, 16, CELL_CHARACTERS)
    assert not (has_things & has_text).any()
    kinds = [has_things, has_text & ~has_colour, has_text & has_colour]  # scene, print, chart
    assert all(kind.sum() > 5 for kind in kinds)
    assert sum(kind.sum() for kind in kinds) == 60
    assert (drawn.masks[has_text].amax((1, 2)) > 0).all()


def test_text_is_never_mirrored(needs_fonts):
    stage = replace(MIXED, kinds=(("print", 0.5), ("page", 0.5)))
    drawn = draw_stage(stage, 20, 3, patch=8, pooled=2)
    assert (flipped(drawn, np.random.default_rng(0)).pixels == drawn.pixels).all()


def test_pictures_drawn_by_several_processes_are_the_same_ones_every_time(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    stage = Stage(*("single", 32, True, 1_100, 8, 6, 1e-3), seed=4, at_first=0.5)
    with several_processes(2) as executor:
        drawings = [
            Drawing(stage, patch=8, pooled=2, device=torch.device("cpu"), executor=executor)
            for _ in range(2)
        ]
        some = drawings[0].first(stage.available(0))
        assert len(some.pixels) == 550
        whole = [drawing.first(stage.pictures).pixels for drawing in drawings]
        assert torch.equal(*whole)
        assert torch.equal(whole[0][:550], some.pixels)
        assert len({picture.numpy().tobytes() for picture in whole[0]}) == 1_100
        for drawing in drawings:
            drawing.close()
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_learned_from_as_they_come_and_all_of_them_from_halfway_on():
    stage = Stage(*("single", 32, True, 100, 8, 10, 1e-3), seed=4, at_first=0.2)
    assert [stage.available(step) for step in (0, 1, 5, 9)] == [20, 36, 100, 100]
    assert replace(stage, at_first=1.0).available(0) == 100
