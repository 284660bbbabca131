"""The format of a checkpoint comes from its own files, and files that do not match are refused."""

import pytest
from transformers import Gemma3Config
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from gemma3vl_app.errors import LoadError
from gemma3vl_app.prompting import PromptFormat

HUB = {
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "mm_tokens_per_image": 64,
    "model_type": "gemma3",
    "text_config": {"model_type": "gemma3_text"},
    "vision_config": {"image_size": 448},
}
TEXT_ONLY = {"model_type": "gemma3_text", "bos_token_id": 2, "eos_token_id": 1}


def test_numbers_come_from_the_hub_s_config(tokenizer):
    format = PromptFormat.from_config(HUB, None, tokenizer)
    assert (format.bos, format.start_of_turn, format.end_of_turn) == (2, 105, 106)
    assert (format.boi, format.eoi, format.soft) == (255999, 256000, 262144)
    assert (format.image_tokens, format.image_size) == (64, 448)
    assert (format.min_crop_size, format.max_crops, format.min_crop_ratio) == (256, 4, 1.2)
    assert (format.mean, format.std) == ((0.5,) * 3, (0.5,) * 3)
    assert format.control_ids == {1, 2, 105, 106, 255999, 256000, 262144}


def test_numbers_come_from_a_config_that_transformers_wrote(tokenizer):
    config = Gemma3Config(vision_config={"image_size": 448}, mm_tokens_per_image=64).to_dict()
    format = PromptFormat.from_config(config, None, tokenizer)
    assert format == PromptFormat.from_config(HUB, None, tokenizer)


def test_newer_names_of_the_image_ids_are_read_too(tokenizer):
    newer = {key.replace("_index", "_id"): value for key, value in HUB.items()}
    assert PromptFormat.from_config(newer, None, tokenizer).soft == 262144


@pytest.mark.parametrize("eos", [None, 1, [1], [1, 106], [1, 50]])
def test_answers_always_end_at_eos_and_at_the_end_of_a_turn(tokenizer, eos):
    format = PromptFormat.from_config(HUB | {"eos_token_id": eos}, None, tokenizer)
    assert format.stop_ids == {1, 106} | ({50} if eos == [1, 50] else set())


def test_a_text_only_model_has_no_image_tokens(tokenizer):
    format = PromptFormat.from_config(TEXT_ONLY, None, tokenizer)
    assert format.image_tokens == 0
    assert format.stop_ids == {1, 106}
    assert -1 not in format.control_ids


def test_the_preprocessor_s_own_settings_rule_and_nulls_do_not(tokenizer):
    preprocessor = Gemma3ImageProcessorPil(
        size={"height": 448, "width": 448},
        image_mean=[0.4, 0.5, 0.6],
        resample=3,
        pan_and_scan_max_num_crops=2,
    ).to_dict() | {"pan_and_scan_min_crop_size": None}
    format = PromptFormat.from_config(HUB, preprocessor, tokenizer)
    assert (format.mean, format.resample, format.max_crops) == ((0.4, 0.5, 0.6), 3, 2)
    assert format.min_crop_size == 256
    nested = {"image_processor": preprocessor, "image_seq_length": 64}
    assert PromptFormat.from_config(HUB, nested, tokenizer) == format


def test_a_preprocessor_of_another_size_is_refused(tokenizer):
    with pytest.raises(LoadError, match="one checkpoint"):
        PromptFormat.from_config(HUB, {"size": {"height": 896, "width": 896}}, tokenizer)


def test_a_tokenizer_that_numbers_control_tokens_differently_is_refused(tokenizer):
    with pytest.raises(LoadError, match=r"<start_of_image> is token 7.*255999"):
        PromptFormat.from_config(HUB | {"boi_token_index": 7}, None, tokenizer)


@pytest.mark.parametrize("missing", ["mm_tokens_per_image", "image_size"])
def test_a_missing_number_is_named(tokenizer, missing):
    config = {key: value for key, value in HUB.items() if key != missing}
    if missing == "image_size":
        config["vision_config"] = {"patch_size": 14}
    with pytest.raises(LoadError, match=missing):
        PromptFormat.from_config(config, None, tokenizer)
