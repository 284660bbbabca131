"""Checkpoints of Megatron-Core: there and back bit by bit, by Megatron's names, running no code."""

import dataclasses
import io
import json
import math
import pickle
import shutil
import signal
import subprocess
import sys
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp

from gemma3vl_app.conversion.converting import convert
from gemma3vl_app.conversion.dcp_reader import DIRECTORY, Inert, _Unpickler, open_dcp
from gemma3vl_app.conversion.dcp_writer import write_dcp
from gemma3vl_app.conversion.megatron_layers import by_layer, in_pieces
from gemma3vl_app.conversion.megatron_names import Interleaved, megatron_table
from gemma3vl_app.conversion.megatron_opening import _latest, is_megatron
from gemma3vl_app.conversion.work_folder import work_folder_of
from gemma3vl_app.errors import ConversionError, LoadError
from gemma3vl_app.loading.conversion import HeldTensor
from tests.conversion.write_megatron_core import numbers

NAMES = json.loads((Path(__file__).parent / "megatron_names.json").read_text())
ITERATION = "release"
MEGATRON_CORE = Path(__file__).parent / "megatron_core"
# Heads, key heads and head width of the three sizes, an eighth or a sixteenth as wide
ROWS, PADDED_ROWS = 300, 384  # of the embeddings, here and there
HEADS = {"4b": (8, 4, 16), "12b": (16, 8, 8), "27b": (32, 16, 8)}


@pytest.fixture(scope="module")
def small(tiny, tmp_path_factory):
    """The tiny checkpoint with a small vocabulary, which takes most of it. Read only."""
    return with_heads(tiny, tmp_path_factory.mktemp("small") / "small", 4, 2, 16)


@pytest.fixture(scope="module")
def written(small, tmp_path_factory):
    """The same as Megatron's. Read only."""
    return convert(small, tmp_path_factory.mktemp("megatron") / "small", "megatron", check=True)


def with_heads(tiny, target, heads, groups, width):
    """Copy a tiny checkpoint with other heads, few embeddings and no usable tokenizer."""
    target.mkdir()
    generator = torch.Generator().manual_seed(heads)
    weights = weights_of(tiny)
    rows = {"q_proj": heads * width, "k_proj": groups * width, "v_proj": groups * width}
    for key, weight in weights.items():
        name = key.split(".")[-2]
        shape = list(weight.shape)
        if "language_model" not in key:
            continue
        if name in rows:
            shape[0] = rows[name]
        elif name == "o_proj":
            shape[1] = heads * width
        elif name in ("q_norm", "k_norm"):
            shape[0] = width
        elif name == "embed_tokens":
            shape[0] = ROWS
        weights[key] = torch.randn(shape, generator=generator).to(torch.bfloat16)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tiny / "config.json").read_text())
    config["text_config"] |= {"vocab_size": ROWS, "head_dim": width}
    config["text_config"] |= {"num_attention_heads": heads, "num_key_value_heads": groups}
    (target / "config.json").write_text(json.dumps(config))
    (target / "tokenizer.json").write_text("{}")
    for name in ("generation_config.json", "preprocessor_config.json"):
        shutil.copy(tiny / name, target)
    return target


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, other):
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


def read_by_torch(folder):
    """All tensors of an iteration, by torch.distributed.checkpoint itself."""
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        key: torch.empty(tuple(entry.size), dtype=entry.properties.dtype)
        for key, entry in metadata.items()
        if isinstance(entry, dcp.TensorStorageMetadata)
    }
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return state, metadata


def write_by_torch(folder, state):
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)


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


@pytest.fixture
def trained(written, tmp_path):
    """A function that writes changed tensors as iteration 120, by torch, with the small files."""

    def write(change=lambda state: None):
        folder = tmp_path / "trained"
        folder.mkdir()
        state, _ = read_by_torch(written / ITERATION)
        change(state)
        write_by_torch(folder / "iter_0000120", state)
        for file in written.glob("*.json"):
            shutil.copy(file, folder)
        (folder / "latest_checkpointed_iteration.txt").write_text("120")
        return folder

    return write


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


# --- a whole model that Megatron-Core itself has written (0.16.1, by `write_megatron_core`) ---


@pytest.fixture(scope="module")
def from_megatron_core(tmp_path_factory):
    """It, written as on the hub. Read only."""
    return convert(MEGATRON_CORE, tmp_path_factory.mktemp("core") / "hub")


def test_a_model_that_megatron_core_wrote_comes_to_the_hub_bit_by_bit(from_megatron_core):
    weights = weights_of(from_megatron_core)
    assert len(weights) == 67
    for key, weight in weights.items():
        assert torch.equal(weight, numbers(key, *weight.shape)), key


def test_what_we_write_of_it_has_megatron_cores_keys_and_numbers(from_megatron_core, tmp_path):
    theirs = open_dcp(MEGATRON_CORE / "iter_0000007", "theirs").tensors
    ours = open_dcp(convert(from_megatron_core, tmp_path / "out", "megatron") / ITERATION, "ours")
    assert ours.tensors.keys() == theirs.keys()
    for key, tensor in ours.tensors.items():
        assert torch.equal(tensor.read(), theirs[key].read()), key


# --- foreign files ---


class Malicious:
    """What runs a command when a careless program unpickles it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_directory_that_would_run_code_is_refused(trained, tmp_path):
    folder = trained()
    mark = tmp_path / "it ran"
    directory = folder / "iter_0000120" / DIRECTORY
    directory.write_bytes(pickle.dumps(Malicious(mark)))
    with pytest.raises(LoadError, match="made to run code, and was not read"):
        convert(folder, tmp_path / "back", "hub")
    assert not mark.exists()
    assert not (tmp_path / "back").exists()


def test_a_weight_that_would_run_code_is_refused(written, tmp_path):
    """The pieces of weights are pickles of torch's own."""
    folder = tmp_path / "copy"
    shutil.copytree(written / ITERATION, folder)
    mark = tmp_path / "it ran"
    checkpoint = open_dcp(folder, "copy")
    key = "language_model.decoder.final_layernorm.weight"
    (index,) = (each for each in checkpoint.directory.storage_data if each.fqn == key)
    torch.save(Malicious(mark), folder / "bad.distcp")
    checkpoint.directory.storage_data[index].relative_path = "bad.distcp"
    checkpoint.directory.storage_data[index].offset = 0
    with pytest.raises(LoadError, match="is damaged"):
        checkpoint.tensors[key].read()
    assert not mark.exists()


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/b"])
def test_a_piece_outside_of_the_folder_is_not_read(written, path):
    checkpoint = open_dcp(written / ITERATION, "tiny")
    key = "language_model.decoder.final_layernorm.weight"
    (index,) = (each for each in checkpoint.directory.storage_data if each.fqn == key)
    checkpoint.directory.storage_data[index].relative_path = path
    with pytest.raises(LoadError, match="is damaged"):
        checkpoint.tensors[key].read()


@pytest.mark.parametrize("damage", [b"", b"nonsense", pickle.dumps({"a": 1}), None])
def test_a_damaged_directory_is_an_error(written, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(written / ITERATION, folder)
    whole = (folder / DIRECTORY).read_bytes()
    (folder / DIRECTORY).write_bytes(whole[:-100] if damage is None else damage)
    with pytest.raises(LoadError, match=r"is damaged\. Download|no directory of weights"):
        open_dcp(folder, "copy")


def test_cut_weights_are_an_error(written, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(written / ITERATION, folder)
    (file,) = folder.glob("*.distcp")
    with file.open("r+b") as opened:
        opened.truncate(1000)
    tensors = open_dcp(folder, "copy").tensors
    with pytest.raises(LoadError, match="is damaged"):
        tensors["language_model.decoder.final_layernorm.weight"].read()


def test_what_is_megatrons_own_in_a_directory_does_nothing(written, tmp_path):
    """Megatron-Core before 0.14 keeps an object of its own there."""
    folder = tmp_path / "copy"
    shutil.copytree(written / ITERATION, folder)
    # A pickle that makes megatron.core.whatever.MCoreMetadata and sets a value in it
    text = b"cmegatron.core.whatever\nMCoreMetadata\n)R}X\x01\x00\x00\x00aK\x01sb."
    directory = open_dcp(folder, "copy").directory
    directory.planner_data = None
    data = pickle.dumps(directory, protocol=2)

    assert type(_Unpickler(io.BytesIO(text)).load()) is Inert
    (folder / DIRECTORY).write_bytes(data)
    assert open_dcp(folder, "copy").tensors


def one_tensor(folder, weight):
    """A folder of one tensor "w", and what its directory says of its pieces."""
    write_dcp(folder, in_pieces({"w": HeldTensor(weight), **LAYER}), [], lambda piece: None)
    checkpoint = open_dcp(folder, "one")
    return checkpoint, checkpoint.directory.state_dict_metadata["w"]


LAYER = {"decoder.layers.0.mlp.linear_fc2.weight": HeldTensor(torch.ones(2, 2))}


def test_pieces_that_overlap_are_damage_and_not_filled_up_with_anything(tmp_path):
    checkpoint, entry = one_tensor(tmp_path, torch.ones(4, 2))
    (index,) = (each for each in checkpoint.directory.storage_data if each.fqn == "w")
    half = dataclasses.replace(entry.chunks[0], sizes=torch.Size([2, 2]))
    entry.chunks[:] = [half, half]
    torch.save(torch.ones(2, 2), tmp_path / "half")
    info = checkpoint.directory.storage_data[index]
    info.relative_path, info.offset = "half", 0
    info.length = (tmp_path / "half").stat().st_size
    with pytest.raises(LoadError, match="is damaged"):
        checkpoint.tensors["w"].read()


def test_a_packed_piece_is_not_unpacked(tmp_path):
    checkpoint, _ = one_tensor(tmp_path, torch.zeros(4, 2))
    (index,) = (each for each in checkpoint.directory.storage_data if each.fqn == "w")
    torch.save(torch.zeros(4, 2), tmp_path / "plain")
    with (
        zipfile.ZipFile(tmp_path / "plain") as plain,
        zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in plain.namelist():
            packed.writestr(record, plain.read(record))
    info = checkpoint.directory.storage_data[index]
    info.offset = 0
    for name, is_read in (("plain", True), ("packed", False)):
        info.relative_path, info.length = name, (tmp_path / name).stat().st_size
        if is_read:
            assert checkpoint.tensors["w"].read().shape == (4, 2)
        else:
            with pytest.raises(LoadError, match="is damaged"):
                checkpoint.tensors["w"].read()


@pytest.mark.parametrize("offset", ["0", -1, 1.5, True])
def test_a_directory_whose_places_are_no_numbers_is_damaged(tmp_path, offset):
    checkpoint, entry = one_tensor(tmp_path, torch.ones(4, 2))
    entry.chunks[0] = dataclasses.replace(entry.chunks[0], offsets=(offset, 0))
    (tmp_path / DIRECTORY).write_bytes(pickle.dumps(checkpoint.directory))
    with pytest.raises(LoadError, match="is damaged"):
        open_dcp(tmp_path, "one")


def test_a_stack_of_more_layers_than_the_model_has_is_refused(tmp_path):
    checkpoint, _ = one_tensor(tmp_path, torch.ones(4, 2))
    with pytest.raises(LoadError, match="is not of 7 layers"):
        by_layer(checkpoint.tensors, vocabulary=1, layers=7)


# --- memory and interruption ---


@dataclasses.dataclass
class Watched:
    """A weight that knows which of the tensors that were read are still in memory."""

    shape: tuple[int, ...]
    read_so_far: list[weakref.ref]
    dtype = torch.float32

    @property
    def nbytes(self):
        return 4 * math.prod(self.shape)

    def read(self):
        array = np.ones(self.shape, dtype=np.float32)  # goes with the memory of its tensor
        self.read_so_far.append(weakref.ref(array))
        return torch.from_numpy(array)


def test_a_layer_is_read_when_it_is_written_and_goes_when_the_next_is(tmp_path):
    """What is in no layer stays until all is written: so torch's writer does."""
    layers, others = [], []
    tensors = {
        f"decoder.layers.{number}.mlp.linear_fc2.weight": Watched((8, 8), layers)
        for number in range(6)
    }
    tensors |= {f"vision_tower.{number}": Watched((8, 8), others) for number in range(3)}
    alive = []

    def about_to(piece):
        alive.append(tuple(sum(each() is not None for each in read) for read in (layers, others)))

    write_dcp(tmp_path, in_pieces(tensors), [], about_to)
    assert alive[:6] == [(0, 0), *[(1, 0)] * 5]
    assert alive[6:] == [(1, 0), (1, 1), (1, 2)]


def bytes_read():
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar:")))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counted by Linux only")
def test_of_a_stack_in_one_piece_only_a_layer_is_read(tmp_path):
    generator = torch.Generator().manual_seed(1)
    key = "decoder.layers.mlp.linear_fc2.weight"
    stack = torch.randn(64, 64, 256, generator=generator)  # 64 KiB a layer, 4 MiB
    turned = torch.randn(3, 4, 2, generator=generator).transpose(1, 2)
    write_by_torch(tmp_path, {"a": torch.ones(3), key: stack, "turned": turned})
    tensors = open_dcp(tmp_path, "one").tensors
    tensors[key].layer(0).read()  # what is imported late
    before = bytes_read()
    assert torch.equal(tensors[key].layer(40).read(), stack[40])
    assert torch.equal(tensors[key].first_rows(2).read(), stack[:2])
    assert bytes_read() - before < stack.nbytes / 8
    # Columns that lie apart in the file come, too
    assert torch.equal(tensors["turned"].layer(1).read(), turned[1])


def test_a_part_of_a_tensor_reads_only_the_pieces_it_touches(tmp_path):
    weight = torch.arange(24.0).reshape(4, 6)
    table = {"decoder.layers.0.mlp.linear_fc2.weight": HeldTensor(weight),
             "decoder.layers.1.mlp.linear_fc2.weight": HeldTensor(weight + 100)}  # fmt: skip
    write_dcp(tmp_path, in_pieces(table), [], lambda piece: None)
    checkpoint = open_dcp(tmp_path, "two layers")
    stacked = checkpoint.tensors["decoder.layers.mlp.linear_fc2.weight"]
    assert stacked.shape == (2, 4, 6)
    # The first layer's piece is lost: the second can still be read
    (lost,) = (i for i in checkpoint.directory.storage_data if tuple(i.offset) == (0, 0, 0))
    checkpoint.directory.storage_data[lost].relative_path = "lost"
    layers = by_layer(checkpoint.tensors, vocabulary=1, layers=2)
    assert torch.equal(layers["decoder.layers.1.mlp.linear_fc2.weight"].read(), weight + 100)
    with pytest.raises(LoadError):
        stacked.read()


def test_a_killed_conversion_writes_the_weights_from_the_beginning_and_is_whole(small, tmp_path):
    arguments = [str(small), str(tmp_path / "out"), "megatron", "none", "20"]
    command = [sys.executable, "-m", "tests.conversion.interrupted", *arguments]
    done = subprocess.run(command, timeout=300, cwd=Path(__file__).parents[2], check=False)
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
