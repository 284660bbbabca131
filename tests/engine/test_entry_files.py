"""Files of the disk cache: read by safetensors itself, and believed only when they are whole."""

import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from gemma3vl_app.engine.entry_files import (
    DamagedFile,
    file_bytes,
    open_entry,
    storable,
    write_entry,
)

TENSORS = {
    "ids": torch.arange(5, dtype=torch.int32),
    "0.keys": torch.randn(2, 3, 4).bfloat16(),
    "0.values": torch.randn(2, 8, 4)[:, 2:5],  # not contiguous
}
ABOUT = {"entry": "x", "places": "[]"}


@pytest.fixture
def path(tmp_path):
    write_entry(tmp_path / "entry", ABOUT, TENSORS)
    return tmp_path / "entry"


def read(path):
    with open_entry(path) as entry:
        found = {name: entry.read(name).clone() for name in TENSORS}
        entry.check()
        return entry.about, found


def test_what_was_written_comes_back_bit_by_bit(path):
    about, found = read(path)
    assert about == ABOUT
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_any_reader_of_safetensors_reads_it(path):
    found = load_file(path)
    assert torch.equal(found["0.values"], TENSORS["0.values"])


def test_its_size_is_known_before_and_only_its_owner_may_read_it(path):
    assert path.stat().st_size == file_bytes(ABOUT, TENSORS)
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_flipped_bit_is_noticed(path):
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            about, found = read(path)
        except DamagedFile:
            continue
        # A space of the header's padding, or of its JSON, may change and mean the same.
        assert about == ABOUT
        assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        b"\x00" * 4096,
        b"\xff" * 4096,  # a header of 16 EiB
        (90 << 20).to_bytes(8, "little") + b"{" * 4096,  # of 90 MiB, which safetensors would read
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (40).to_bytes(8, "little") + b'{"ids":{"dtype":"I32","shape":[9],"da',
        b"%PDF-1.7 something else altogether",
    ],
)
def test_what_is_no_entry_is_refused(tmp_path, content):
    (tmp_path / "entry").write_bytes(content)
    with pytest.raises(DamagedFile):
        read(tmp_path / "entry")


@pytest.mark.parametrize("left", [9, 300, -1, -5])
def test_what_was_cut_off_is_refused(path, left):
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DamagedFile):
        read(path)


def test_only_known_kinds_of_numbers_are_stored():
    assert storable(torch.zeros(1, dtype=torch.bfloat16))
    assert not storable(torch.zeros(1, dtype=torch.float64))
