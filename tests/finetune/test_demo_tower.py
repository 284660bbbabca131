import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from gemma3vl_app.errors import TrainingError
from gemma3vl_app.finetune.demo_tower import (
    TowerWithHeads,
    claimed,
    claimed_characters,
    take_tower,
)
from gemma3vl_app.finetune.tower_drawing import draw_stage
from gemma3vl_app.finetune.tower_pictures import (
    HEADS,
    NOTHING,
    Drawn,
    Stage,
    labels_of,
    neighbours_of,
)
from gemma3vl_app.finetune.tower_training import (
    measured,
    places_as_waves,
    train_stage,
    whitened_patches,
)
from gemma3vl_app.scenes.fonts import CHARACTERS
from gemma3vl_app.scenes.scene import Scene, Thing

TINY = Stage("single", 32, True, 40, 8, 6, 1e-3, seed=1, heads=("shape", "colour"))
READING = replace(
    TINY, name="letters", side=64, heads=tuple(HEADS), kinds=(("scene", 0.5), ("print", 0.5))
)


@pytest.fixture
def executor():
    """Draws in this process, which is quicker for so few pictures."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


def drawn_for(tower, stage, count):
    return draw_stage(stage, count, stage.seed, patch=tower.patch, pooled=tower.pooled)


def test_cells_are_what_the_projector_of_the_real_model_sees(tower):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    torch.nn.init.normal_(tower.projector.mm_input_projection_weight)
    with torch.no_grad():
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
        reference = tower.projector(tower.tower(pixel_values=scaled).last_hidden_state)
        ours = tower.look(torch.from_numpy(pixels)) @ tower.projector.mm_input_projection_weight
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


def test_places_are_told_from_each_other_and_near_ones_are_alike():
    table = places_as_waves(6, 32)
    likeness = (table @ table.T).reshape(6, 6, 6, 6)
    assert likeness[2, 3].flatten().argmax() == 2 * 6 + 3
    assert likeness[2, 3, 2, 4] > likeness[2, 3, 5, 0]
    assert torch.allclose(likeness[0, 0, 0, 1], likeness[3, 2, 3, 3], atol=1e-4)  # by distance only


def test_where_places_are_asked_positions_begin_a_third_as_strong_as_patches(
    tower, tmp_path, monkeypatch, executor
):
    monkeypatch.setattr("gemma3vl_app.finetune.tower_training._TEST_PICTURES", 8)
    embeddings = tower.tower.embeddings
    table = embeddings.position_embedding.weight
    stages = [
        replace(TINY, steps=1, learning_rate=1e-9),
        replace(TINY, name="scenes", side=64, steps=1, learning_rate=1e-9, places=True),
    ]
    before = table.detach().std().item()
    train_stage(tower, stages[0], tmp_path, executor, first=True)
    assert table.detach().std().item() == pytest.approx(before, rel=1e-4)
    train_stage(tower, stages[1], tmp_path, executor, first=False)
    pixels = drawn_for(tower, stages[1], 40).pixels
    with torch.no_grad():
        patches = embeddings.patch_embedding(pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    assert (table.detach().std() / patches.std()).item() == pytest.approx(1 / 3, rel=0.1)


def test_a_thing_on_a_border_belongs_to_the_surest_of_the_cells_that_touch_it_and_to_no_other():
    things = (
        Thing("star", "blue", "small", False, 0.5, 0.5, 0.08, 0.0),  # where four cells meet
        Thing("circle", "red", "small", False, 0.1, 0.1, 0.08, 0.0),  # well within one
    )
    scene = Scene(things, "white", "plain", "plain", 1.0)
    empty = np.zeros(0, dtype=np.int8)
    cells = labels_of(scene, 4)[None], neighbours_of(scene, 4)[None]
    drawn = Drawn.of((empty, *cells, *[empty] * 5))
    for surest in (5, 6, 9, 10):  # of 4 x 4
        centre = torch.full((1, 16), -2.0)
        centre[0, surest], centre[0, 3] = -1.0, 9.0
        labels, claimable = claimed(centre, drawn)
        assert claimable[0].nonzero().flatten().tolist() == [0, 5, 6, 9, 10]
        assert labels[0, surest].tolist() == drawn.cells[0, 10].tolist()
        assert labels[0, 0].tolist() == drawn.cells[0, 0].tolist()
        assert (labels[..., 0] != NOTHING).sum() == 2


def test_two_things_side_by_side_keep_their_cells():
    things = (
        Thing("star", "blue", "small", False, 0.49, 0.4, 0.08, 0.0),
        Thing("circle", "red", "small", False, 0.62, 0.4, 0.08, 0.0),
    )
    scene = Scene(things, "white", "plain", "plain", 1.0)
    empty = np.zeros(0, dtype=np.int8)
    cells = labels_of(scene, 4)[None], neighbours_of(scene, 4)[None]
    drawn = Drawn.of((empty, *cells, *[empty] * 5))
    centre = torch.arange(16.0)[None]  # the star's right neighbour is surer than its own cell
    assert (claimed(centre, drawn)[0] == drawn.cells).all()


def as_text(labels):
    return ["".join(CHARACTERS[n] for n in cell if n != NOTHING) for cell in labels.tolist()]


def claims(own, border, wanted):
    """Return what 2 x 2 cells are to say, when they say what is `wanted` of them themselves."""
    known, slots = len(CHARACTERS) + 1, 6
    scores = torch.zeros(1, 4, slots, known)
    for cell, text in enumerate(wanted):
        for slot in range(slots):
            said = CHARACTERS.index(text[slot]) + 1 if slot < len(text) else 0
            scores[0, cell, slot, said] = 1.0
    cells = torch.full((1, 4, slots), NOTHING, dtype=torch.int8)
    for cell, text in enumerate(own):
        for slot, character in enumerate(text):
            cells[0, cell, slot] = CHARACTERS.index(character)
    on_border = [NOTHING if c == " " else CHARACTERS.index(c) for c in border]
    empty = torch.zeros(0, dtype=torch.int8)
    at_border = torch.tensor([on_border], dtype=torch.int8)
    drawn = Drawn(*[empty] * 5, cells, at_border, empty)
    return as_text(claimed_characters(scores.flatten(2), drawn)[0])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (["abc", "de", "", ""], ["abc", "de", "", ""]),  # the left one says that it is its own
        (["ab", "cde", "", ""], ["ab", "cde", "", ""]),  # and leaves it to the right one
        (["abc", "cde", "", ""], ["abc", "de", "", ""]),  # both want it: the left one has it
        (["ab", "de", "", ""], ["ab", "cde", "", ""]),  # and neither: the right one
        (["", "", "", ""], ["ab", "cde", "", ""]),
    ],
)
def test_a_character_on_a_border_is_said_by_one_cell_the_one_that_says_it_anyway(said, told):
    assert claims(["ab", "de", "", ""], " c  ", said) == told


def test_a_cell_that_is_full_leaves_what_is_on_its_border_to_the_next_one():
    assert claims(["abcdef", "h", "", ""], " g  ", ["abcdef", "", "", ""])[:2] == [
        "abcdef",
        "gh",
    ]


def test_characters_on_no_border_are_said_where_they_are():
    own = ["ab", "", "c", "d"]
    assert claims(own, "    ", ["", "ab", "d", "c"]) == own


def test_whitened_patches_come_out_about_equally_strong(tower):
    rng = np.random.default_rng(0)
    pixels = rng.normal(128, 40, (64, 1, 1, 3)) + rng.normal(0, 20, (64, 32, 32, 3))
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    whitened_patches(torch.from_numpy(pixels), tower)
    with torch.no_grad():
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
        spread = tower.tower.embeddings.patch_embedding(scaled).std((0, 2, 3))
    assert spread.max() / spread.median() < 3


def test_an_interrupted_stage_goes_on_as_if_it_had_not_been(tower, tmp_path, monkeypatch, executor):
    monkeypatch.setattr("gemma3vl_app.finetune.tower_training._TEST_PICTURES", 8)
    monkeypatch.setattr("gemma3vl_app.finetune.tower_training._SAVE_EVERY", 2)
    start = {name: value.clone() for name, value in tower.state_dict().items()}
    train_stage(tower, TINY, tmp_path / "whole", executor, first=True)
    whole = {name: value.clone() for name, value in tower.state_dict().items()}

    tower.load_state_dict(start)
    steps = iter(range(3))  # the fourth step never comes
    kept = TowerWithHeads.loss

    def failing(self, drawn, *rest):
        if torch.is_grad_enabled() and next(steps, None) is None:
            raise KeyboardInterrupt
        return kept(self, drawn, *rest)

    monkeypatch.setattr(TowerWithHeads, "loss", failing)
    with pytest.raises(KeyboardInterrupt):
        train_stage(tower, TINY, tmp_path / "parts", executor, first=True)
    monkeypatch.setattr(TowerWithHeads, "loss", kept)
    tower.load_state_dict(start)
    train_stage(tower, TINY, tmp_path / "parts", executor, first=True)
    for name, value in tower.state_dict().items():
        torch.testing.assert_close(value, whole[name], atol=0, rtol=0)


def test_new_heads_learn_alone_first_and_the_tower_after_them(
    tower, tmp_path, monkeypatch, executor
):
    monkeypatch.setattr("gemma3vl_app.finetune.tower_training._TEST_PICTURES", 8)
    monkeypatch.setattr("gemma3vl_app.finetune.tower_training._SAVE_EVERY", 3)
    stage = replace(TINY, steps=6, heads_alone=3, learning_rate=1e-2)
    start = {name: value.clone() for name, value in tower.state_dict().items()}
    saved = []
    monkeypatch.setattr(
        "gemma3vl_app.finetune.tower_training.save_checkpoint",
        lambda state, file: saved.append({k: v.clone() for k, v in state["model"].items()}),
    )
    train_stage(tower, stage, tmp_path, executor, first=False)

    def changed(state, part):
        names = [name for name in start if name.startswith(part)]
        return any(not torch.equal(state[name], start[name]) for name in names)

    assert [changed(state, "tower.") for state in saved] == [False, True]
    assert [changed(state, "heads.") for state in saved] == [True, True]


def test_learning_lowers_the_loss_on_what_was_seen(tower, tmp_path):
    drawn = drawn_for(tower, TINY, 8)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss, _ = tower.loss(drawn, ("shape", "colour"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert measured(tower, drawn, ("colour",))["colour"] > 0.9


def test_characters_are_learned_beside_shapes(tower, needs_fonts):
    drawn = drawn_for(tower, READING, 12)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=3e-3)
    for _ in range(300):
        loss, _ = tower.loss(drawn, READING.heads)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    figures = measured(tower, drawn, READING.heads)
    assert figures["text"] > 0.9  # no letter twice, none left out
    assert figures["shape"] > 0.9


def test_a_tower_of_before_it_learned_to_read_is_taken_and_another_s_refused(tower):
    state = {k: v for k, v in tower.state_dict().items() if "_characters." not in k}
    assert len(state) < len(tower.state_dict())
    take_tower(tower, state)
    del state["centre.bias"]
    with pytest.raises(TrainingError, match="another version"):
        take_tower(tower, state)


def test_a_tower_with_more_layers_begins_as_the_one_it_has_grown_from(tower):
    config = copy.deepcopy(tower.tower.config)
    deeper = copy.deepcopy(tower)
    config.num_hidden_layers += 2
    deeper.tower = type(tower.tower)(config)
    state = {name: value.clone() for name, value in tower.state_dict().items()}
    take_tower(deeper, state)
    pixels = torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(deeper.look(pixels), tower.look(pixels))
    loss, _ = deeper.loss(drawn_for(tower, replace(TINY, side=64), 4), ("shape",))
    loss.backward()
    last = deeper.tower.encoder.layers[-1]
    assert last.mlp.fc2.weight.grad.abs().sum() > 0  # and they can learn
