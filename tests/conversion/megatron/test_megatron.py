"""Checkpoints of Megatron-Core: there and back bit by bit, by Megatron's names."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from gemma3vl_app.conversion.converting import convert
from gemma3vl_app.conversion.dcp_reader import DIRECTORY, open_dcp
from gemma3vl_app.conversion.megatron_names import Interleaved, megatron_table
from gemma3vl_app.conversion.megatron_opening import _latest, is_megatron
from gemma3vl_app.conversion.work_folder import work_folder_of
from gemma3vl_app.errors import ConversionError, LoadError
from tests.conversion.megatron.checkpoints import (
    ITERATION,
    PADDED_ROWS,
    ROWS,
    assert_same_weights,
    read_by_torch,
    weights_of,
    with_heads,
    write_by_torch,
)
from tests.conversion.megatron.write_by_core import numbers

NAMES = json.loads((Path(__file__).parent / "names.json").read_text())
BY_CORE = Path(__file__).parent / "by_core"
# Heads, key heads and head width of the three sizes, an eighth or a sixteenth as wide
HEADS = {"4b": (8, 4, 16), "12b": (16, 8, 8), "27b": (32, 16, 8)}


# --- there and back ---


def test_every_weight_comes_back_bit_by_bit(small, written, tmp_path):
    back = convert(written, tmp_path / "back", "hub", check=True)
    assert_same_weights(back, small)
    for name in ("tokenizer.json", "generation_config.json", "preprocessor_config.json"):
        assert (back / name).read_bytes() == (small / name).read_bytes()


@pytest.mark.parametrize("size", HEADS)
def test_heads_of_the_three_sizes_come_back_bit_by_bit(tiny, tmp_path, size):
    heads, groups, width = HEADS[size]
    source = with_heads(tiny, tmp_path / "source", heads, groups, width)
    there = convert(source, tmp_path / "there", "megatron")
    assert_same_weights(convert(there, tmp_path / "back", "hub"), source)
    state, _ = read_by_torch(there / ITERATION)
    joined = state["language_model.decoder.layers.self_attention.linear_qkv.weight"]
    assert joined.shape == (6, (heads + 2 * groups) * width, 64)


def test_a_text_only_model_has_no_prefix(text_only, tmp_path):
    there = convert(text_only, tmp_path / "there", "megatron")
    state, _ = read_by_torch(there / ITERATION)
    assert "embedding.word_embeddings.weight" in state
    assert not any(key.startswith(("language_model.", "vision_tower.")) for key in state)
    assert_same_weights(convert(there, tmp_path / "back", "hub"), text_only)
    run = yaml.safe_load((there / ITERATION / "run_config.yaml").read_text())
    assert run["model"]["_target_"].endswith("Gemma3ModelProvider")


@pytest.fixture
def text_only(small, tmp_path):
    """The language model of the tiny checkpoint, as a checkpoint of the text-only class."""
    folder = tmp_path / "text"
    folder.mkdir()
    prefix = "language_model.model."
    weights = {
        key.replace(prefix, "model."): weight
        for key, weight in weights_of(small).items()
        if key.startswith(prefix)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((small / "config.json").read_text())["text_config"]
    config |= {"architectures": ["Gemma3ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(small / "tokenizer.json", folder)
    return folder


# --- Megatron's names and files ---


def test_keys_and_shapes_are_those_of_megatron_bridge(written):
    """`megatron_names.json` lists them with the lines of Megatron that they come from."""
    state, metadata = read_by_torch(written / ITERATION)
    sizes = {"L": 6, "H": 64, "F": 128, "QKV": 128, "Q": 64, "D": 16, "V": PADDED_ROWS, "2F": 256}
    sizes |= {"VH": 48, "VF": 96, "P": 64, "patch": 8}
    expected = {}
    for key, entry in NAMES["tensors"].items():
        shape = tuple(sizes.get(side, side) for side in entry["shape"])
        for layer in range(2) if "{layer}" in key else [0]:
            expected[key.format(layer=layer)] = shape
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == expected
    states = {key.format(layer=n) for key in NAMES["states"] for n in range(6)}
    assert metadata.keys() - state.keys() == states


def test_norms_are_as_they_are_and_joined_matrices_in_megatrons_order(small, written):
    state, _ = read_by_torch(written / ITERATION)
    ours = weights_of(small)
    layer = "language_model.model.layers.3."
    decoder = "language_model.decoder.layers."
    # 1) Zero-centred norms, as ours are
    norm = state[decoder + "self_attention.linear_qkv.layer_norm_weight"][3]
    assert torch.equal(norm, ours[layer + "input_layernorm.weight"])
    # 2) Two groups: two queries of 16 rows, their key, their value
    qkv = state[decoder + "self_attention.linear_qkv.weight"][3]
    q, k, v = (ours[f"{layer}self_attn.{each}_proj.weight"] for each in "qkv")
    assert torch.equal(qkv, torch.cat([q[:32], k[:16], v[:16], q[32:], k[16:], v[16:]]))
    # 3) Gate, then up
    gate_up = state[decoder + "mlp.linear_fc1.weight"][3]
    parts = [ours[f"{layer}mlp.{each}_proj.weight"] for each in ("gate", "up")]
    assert torch.equal(gate_up, torch.cat(parts))
    # 4) The projection as a linear layer has it, and rows of zeros below the vocabulary
    projection = state["multi_modal_projector.proj.weight"]
    assert torch.equal(projection.T, ours["multi_modal_projector.mm_input_projection_weight"])
    assert not state["language_model.embedding.word_embeddings.weight"][ROWS:].any()


def test_the_small_files_are_what_megatron_looks_for(written):
    folder = written / ITERATION
    assert json.loads((folder / "metadata.json").read_text())["sharded_backend"] == "torch_dist"
    common = torch.load(folder / "common.pt", weights_only=True)
    assert common["content_metadata"] == {"singleton_local_shards": False}
    assert (written / "latest_checkpointed_iteration.txt").read_text() == "release"
    run = yaml.safe_load((folder / "run_config.yaml").read_text())
    assert run["model"]["_target_"].endswith("Gemma3VLModelProvider")
    assert run["model"]["num_query_groups"] == 2
    assert run["model"]["rotary_base"] == [10_000.0, 1_000_000.0]
    assert run["model"]["rope_scaling_factor"] == 8.0
    assert run["model"]["interleaved_attn_pattern"] == [5, 1]
    assert run["model"]["tensor_model_parallel_size"] == 1
    assert not run["checkpoint"]["save_optim"]


# --- what a training leaves ---


def test_a_trained_checkpoint_opens_without_its_optimizer(small, trained, tmp_path):
    def change(state):
        state["language_model.decoder.final_layernorm.weight"] += 1
        state["optimizer.state.exp_avg.decoder.final_layernorm.weight"] = torch.zeros(64)
        state["rng_state"] = {"seed": 1}

    back = weights_of(convert(trained(change), tmp_path / "back", "hub"))
    name = "language_model.model.norm.weight"
    assert torch.equal(back[name], weights_of(small)[name] + 1)
    assert back.keys() == weights_of(small).keys()


def test_layers_that_are_kept_apart_are_read_too(small, trained, tmp_path):
    def change(state):
        for key in [key for key in state if "decoder.layers." in key]:
            for layer, weight in enumerate(state.pop(key)):
                name = key.replace("decoder.layers.", f"decoder.layers.{layer}.")
                state[name] = weight.clone()

    assert_same_weights(convert(trained(change), tmp_path / "back", "hub"), small)


def test_the_tower_of_older_bridges_and_other_paddings_are_read_too(small, trained, tmp_path):
    def change(state):
        for key in [key for key in state if key.startswith("vision_tower.")]:
            name = key.replace("vision_tower.", "vision_tower.vision_model.")
            state[name] = state.pop(key)
        key = "language_model.embedding.word_embeddings.weight"
        state[key] = torch.cat([state[key], torch.ones(752, 64, dtype=torch.bfloat16)])

    assert_same_weights(convert(trained(change), tmp_path / "back", "hub"), small)


def test_a_key_of_another_model_is_an_error_that_names_it(trained, tmp_path):
    def change(state):
        state["language_model.decoder.layers.mlp.router.weight"] = torch.zeros(6, 4, 64)

    with pytest.raises(ConversionError, match=r"decoder\.layers\.0\.mlp\.router\.weight"):
        convert(trained(change), tmp_path / "back", "hub")


def test_weights_without_the_models_small_files_say_what_to_copy(written, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(written / ITERATION, bare / ITERATION)
    with pytest.raises(LoadError, match=r"without config\.json\. Copy all small files"):
        convert(bare, tmp_path / "back", "hub")


def test_an_older_iteration_is_read_where_its_own_folder_is_given(small, trained, tmp_path):
    folder = trained()
    write_by_torch(folder / "iter_0000240", {})
    (folder / "latest_checkpointed_iteration.txt").write_text("240")
    assert_same_weights(convert(folder / "iter_0000120", tmp_path / "back", "hub"), small)


def test_a_tracker_that_names_a_missing_iteration_is_refused(trained, tmp_path):
    folder = trained()
    (folder / "latest_checkpointed_iteration.txt").write_text("130")
    with pytest.raises(LoadError, match="lacks the iteration 'iter_0000130'"):
        convert(folder, tmp_path / "back", "hub")


def test_megatron_bridge_may_start_from_what_is_written(written):
    """Its `read_metadata` takes an iteration above 0, or `release`, and looks for that folder."""
    said = (written / "latest_checkpointed_iteration.txt").read_text().strip()
    assert said == "release" or int(said) > 0
    assert (written / said / DIRECTORY).is_file()


def test_an_iteration_is_newer_than_the_release(written, trained):
    folder = trained()
    (folder / "release").mkdir()
    (folder / "latest_checkpointed_iteration.txt").unlink()
    assert _latest(folder, "trained").name == "iter_0000120"


def test_a_tracker_of_thousands_of_digits_is_refused(trained, tmp_path):
    folder = trained()
    (folder / "latest_checkpointed_iteration.txt").write_text("1" * 5000)
    with pytest.raises(LoadError, match="lacks the iteration"):
        convert(folder, tmp_path / "back", "hub")


def test_an_ordinary_folder_with_a_subfolder_named_release_stays_ordinary(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "mine")
    (folder / "release").mkdir()
    assert not is_megatron(folder)


# --- a whole model that Megatron-Core itself has written (0.16.1, by `write_by_core`) ---


@pytest.fixture(scope="module")
def from_megatron_core(tmp_path_factory):
    """It, written as on the hub. Read only."""
    return convert(BY_CORE, tmp_path_factory.mktemp("core") / "hub")


def test_a_model_that_megatron_core_wrote_comes_to_the_hub_bit_by_bit(from_megatron_core):
    weights = weights_of(from_megatron_core)
    assert len(weights) == 67
    for key, weight in weights.items():
        assert torch.equal(weight, numbers(key, *weight.shape)), key


def test_what_we_write_of_it_has_megatron_cores_keys_and_numbers(from_megatron_core, tmp_path):
    theirs = open_dcp(BY_CORE / "iter_0000007", "theirs").tensors
    ours = open_dcp(convert(from_megatron_core, tmp_path / "out", "megatron") / ITERATION, "ours")
    assert ours.tensors.keys() == theirs.keys()
    for key, tensor in ours.tensors.items():
        assert torch.equal(tensor.read(), theirs[key].read()), key


def test_a_killed_conversion_writes_the_weights_from_the_beginning_and_is_whole(small, tmp_path):
    arguments = [str(small), str(tmp_path / "out"), "megatron", "none", "20"]
    command = [sys.executable, "-m", "tests.conversion.interrupted", *arguments]
    done = subprocess.run(command, timeout=300, cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    left = work_folder_of(tmp_path / "out") / ITERATION
    assert not (left / DIRECTORY).exists()
    assert [each.name for each in left.iterdir()] == ["__0_0.distcp"]
    steps = []
    out = convert(small, tmp_path / "out", "megatron", progress=steps.append)
    first = next(step for step in steps if step.message.startswith("Writing "))
    assert first.done == 0
    assert_same_weights(convert(out, tmp_path / "back", "hub"), small)
    assert not work_folder_of(tmp_path / "out").exists()


def test_interleaving_is_undone_for_any_heads():
    weights = [torch.randn(rows, 5) for rows in (24, 8, 8)]
    layout = Interleaved(head_dim=4)
    whole = layout.join(weights)
    shapes = [tuple(each.shape) for each in weights]
    assert tuple(whole.shape) == layout.joined_shape(shapes)
    for index, weight in enumerate(weights):
        assert torch.equal(layout.split(whole, shapes, index), weight)


def test_no_key_of_the_table_stands_for_two_weights():
    table = megatron_table(16)
    files = [row.file for row in (*table.rows, *table.also_read)]
    assert len(set(files)) == len(files)
