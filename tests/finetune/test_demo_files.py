import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from gemma3vl_app.finetune import demo_files
from gemma3vl_app.finetune.demo_language import Reader
from gemma3vl_app.finetune.demo_tower import TowerWithHeads
from gemma3vl_app.loading import demo as shipped_demo
from gemma3vl_app.loading.demo import merge_lora


def test_an_unfinished_tower_goes_on_from_its_file(tower, tmp_path):
    demo_files.write_unfinished(tower, tmp_path, "scenes", 300)
    state = demo_files.read_state(tmp_path)
    assert (state["stage"], state["step"]) == ("scenes", 300)
    file = tmp_path / demo_files.UNFINISHED
    assert state["sha256"] == {file.name: demo_files.sha256(file)}
    assert {each.dtype for each in load_file(file).values()} == {torch.bfloat16}
    rounded = {name: value.bfloat16().float() for name, value in tower.state_dict().items()}
    for parameter in tower.parameters():
        parameter.data.zero_()
    demo_files.load_unfinished(tower, tmp_path)
    for name, value in tower.state_dict().items():
        assert torch.equal(value, rounded[name])


@pytest.fixture
def trained(tiny):
    """A tower and a reader with numbers of their own."""
    torch.manual_seed(1)
    config = Gemma3Config(**json.loads((tiny / "config.json").read_text()))
    model = Gemma3ForConditionalGeneration.from_pretrained(tiny, dtype=torch.float32)
    reader = Reader(model, config.mm_tokens_per_image)
    for parameter in reader.trained().values():
        torch.nn.init.normal_(parameter)
    return TowerWithHeads(config), reader


def test_shipped_files_hold_what_was_trained_under_the_names_that_loading_takes(trained, tmp_path):
    tower, reader = trained
    done = {"stage": "language", "step": 10, "of_steps": 20, "tower": "reading"}
    demo_files.write_demo(reader, tower, tmp_path, done)
    state = demo_files.read_state(tmp_path)
    assert {name: state[name] for name in done} == done
    for name, digest in state["sha256"].items():
        assert demo_files.sha256(tmp_path / name) == digest

    shipped = load_file(shipped_demo.DATA / demo_files.ADAPTER)
    written = load_file(tmp_path / demo_files.ADAPTER)
    first = "base_model.model.model.language_model.layers.0."
    assert {n for n in written if n.startswith(first)} == {
        n for n in shipped if n.startswith(first)
    }

    kept = {name: p.detach().bfloat16().float() for name, p in reader.trained().items()}
    before = tower.tower.post_layernorm.weight.detach().clone()
    for parameter in (*reader.trained().values(), tower.tower.post_layernorm.weight):
        torch.nn.init.zeros_(parameter)
    demo_files.load_adapter(reader, tmp_path)
    demo_files.load_tower(tower, tmp_path)
    reader.projector.load_state_dict(tower.projector.state_dict())
    for name, parameter in reader.trained().items():
        assert torch.equal(parameter.detach(), kept[name])
    assert torch.equal(tower.tower.post_layernorm.weight, before)


def test_the_shipped_lora_merges_into_the_layers_it_was_trained_beside(trained, tmp_path):
    tower, reader = trained
    demo_files.write_demo(reader, tower, tmp_path, {"stage": "language", "step": 1})
    config = (shipped_demo.DATA / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config)
    layer = reader.language.layers[0].mlp.up_proj
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    inner = {f"{n}": p for n, p in reader.peft.base_model.model.named_parameters()}
    plain = {n.replace(".base_layer", ""): p for n, p in inner.items() if ".lora_" not in n}
    merged = merge_lora({n: p.detach() for n, p in plain.items()}, tmp_path)[name]
    vector = torch.randn(layer.in_features)
    with torch.no_grad():
        torch.testing.assert_close(merged @ vector, layer(vector), atol=0.5, rtol=0.05)  # bf16


def test_positions_are_stretched_to_a_larger_square_and_left_alone_on_the_same_one():
    side, larger = 4, 6
    across = torch.arange(side).repeat(side).float()  # grows from left to right only
    table = torch.stack([across, torch.ones(side * side)], dim=1)
    assert demo_files.stretched(table, side) is table
    stretched = demo_files.stretched(table, larger).reshape(larger, larger, 2)
    torch.testing.assert_close(stretched[0], stretched[-1])  # every row is the same still
    assert (stretched[0, 1:, 0] > stretched[0, :-1, 0]).all()
    torch.testing.assert_close(stretched[..., 1], torch.ones(larger, larger))
