"""Folders of torch.distributed.checkpoint: foreign ones run no code, parts are read alone."""

import dataclasses
import io
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from gemma3vl_app.conversion.converting import convert
from gemma3vl_app.conversion.dcp_reader import DIRECTORY, Inert, _Unpickler, _Window, open_dcp
from gemma3vl_app.conversion.dcp_writer import write_dcp
from gemma3vl_app.conversion.megatron_layers import by_layer, in_pieces
from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.conversion import HeldTensor
from tests.conversion.megatron.checkpoints import ITERATION, write_by_torch

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
    info = checkpoint.directory.storage_data[index]
    info.relative_path, info.offset = "bad.distcp", 0
    info.length = (folder / "bad.distcp").stat().st_size  # whole, not cut
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


# --- parts ---


@pytest.fixture
def bytes_read(monkeypatch):
    """How many bytes each look into a file of weights has taken, since the test began."""
    counts = []
    readinto = _Window.readinto

    def counted(window, buffer):
        counts.append(readinto(window, buffer))
        return counts[-1]

    monkeypatch.setattr(_Window, "readinto", counted)
    return counts


def test_of_a_stack_in_one_piece_only_a_layer_is_read(tmp_path, bytes_read):
    generator = torch.Generator().manual_seed(1)
    key = "decoder.layers.mlp.linear_fc2.weight"
    stack = torch.randn(64, 64, 256, generator=generator)  # 64 KiB a layer, 4 MiB
    turned = torch.randn(3, 4, 2, generator=generator).transpose(1, 2)
    write_by_torch(tmp_path, {"a": torch.ones(3), key: stack, "turned": turned})
    tensors = open_dcp(tmp_path, "one").tensors
    assert torch.equal(tensors[key].layer(40).read(), stack[40])
    assert torch.equal(tensors[key].first_rows(2).read(), stack[:2])
    assert stack.nbytes / 32 <= sum(bytes_read) < stack.nbytes / 8
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
