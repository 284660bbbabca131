"""The tiny checkpoint is a Gemma 3 whose pictures and words matter."""

import time

import pytest
import torch

from gemma3vl_app.loading import load_model
from gemma3vl_app.loading.checkpoint import open_checkpoint
from gemma3vl_app.testing import tiny_checkpoint

IMAGE, TOKENS = 262_144, 16


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny, weights="fp32").model


def logits(model, picture, text=range(5000, 5040)):
    ids = torch.tensor([[2, 105, 108, 255_999, *[IMAGE] * TOKENS, 256_000, 108, *text]])
    with torch.inference_mode():
        return model(
            input_ids=ids, pixel_values=picture, token_type_ids=(ids == IMAGE).long()
        ).logits[0]


def square(channel):
    picture = -torch.ones(1, 3, 64, 64)
    picture[:, channel, 16:48, 16:48] = 1
    return picture


def test_another_picture_gives_clearly_other_logits(model):
    red, blue = logits(model, square(0))[-1], logits(model, square(2))[-1]
    assert (red - blue).std() > 0.3
    assert red.argmax() != blue.argmax()


def test_the_best_token_is_seldom_a_near_tie(model):
    best = logits(model, square(0)).topk(2).values
    assert ((best[:, 0] - best[:, 1]) > 1e-3).float().mean() > 0.95


def test_greedy_text_is_not_one_token_repeated(model):
    ids = torch.tensor([[2, 105, 2364, 107, 9259, 106, 107, 105, 4368, 107]])
    text = model.generate(
        input_ids=ids, max_new_tokens=30, do_sample=False, eos_token_id=[1, 106], pad_token_id=0
    )
    assert len(set(text[0, ids.shape[1] :].tolist())) > 15


def test_its_architecture_is_the_released_one_in_small(model):
    text = model.config.text_config
    assert text.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert text.sliding_window == 32
    assert text.rope_parameters["full_attention"]["factor"] == 8.0
    assert text.rope_parameters["full_attention"]["rope_theta"] == 1_000_000
    assert text.rope_parameters["sliding_attention"] == {
        "rope_type": "default",
        "rope_theta": 10_000.0,
    }


def test_layers_and_window_are_as_asked_and_the_last_layer_is_global(tmp_path):
    folder = tiny_checkpoint(tmp_path / "t", layers=8, window=7)
    text = open_checkpoint(folder).config["text_config"]
    kinds = text["layer_types"]
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == [5, 7]
    assert text["sliding_window"] == 7


def test_the_seed_decides_the_weights_and_writing_takes_seconds(tmp_path, tiny):
    start = time.perf_counter()
    again = tiny_checkpoint(tmp_path / "again")
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    assert time.perf_counter() - start < 10
    same, different = (
        (folder / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
        for folder in (again, other)
    )
    assert same and not different
