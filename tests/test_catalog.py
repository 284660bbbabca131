"""The published configs describe the published models."""

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from gemma3vl_app import catalog


def test_the_4b_config_builds_the_published_number_of_parameters():
    config = Gemma3Config.from_dict(catalog.published_config("4b"))
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(config)
    tower = model.model.vision_tower
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_300_079_472
    assert sum(parameter.numel() for parameter in tower.parameters()) == 416_866_032
