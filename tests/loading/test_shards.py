"""Safetensors files: any bytes give right tensors or one plain error, quickly."""

import json
import os
import re
import struct
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.shards import DTYPES, MAX_HEADER_BYTES, MAX_TENSORS, read_headers

FILE = "model-00001-of-00002.safetensors"
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
MOST_SEC = 1.0

FUZZ = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def packed(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def refusal(content: bytes | None, tmp_path: Path) -> str:
    """What is said of a file with this content."""
    file = tmp_path / FILE
    if content is not None:
        file.write_bytes(content)
    started = time.process_time()
    with pytest.raises(LoadError) as caught:
        read_headers([file], "gemma")
    assert time.process_time() - started < MOST_SEC
    message = str(caught.value)
    assert FILE in message and "'gemma'" in message, message
    assert str(tmp_path) not in message and "\n" not in message
    assert message.endswith(".") and len(message) < 300
    return message


# --- what reading gives


@pytest.mark.parametrize("kind", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(kind, tmp_path):
    dtype = DTYPES[kind]
    bits = torch.randint(0, 256, (5, 3 * dtype.itemsize), dtype=torch.uint8)
    tensor = (bits % 2).bool() if dtype == torch.bool else bits.view(dtype)
    several = {"a.weight": tensor, "scalar": tensor[0, 0].clone(), "none": tensor[:0].clone()}
    save_file(several, tmp_path / FILE, metadata={"format": "pt"})
    stored = read_headers([tmp_path / FILE], "gemma")
    assert stored.keys() == several.keys()
    for key, expected in several.items():
        got = stored[key].read()
        assert (stored[key].dtype, stored[key].shape) == (dtype, tuple(expected.shape))
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert stored[key].nbytes == expected.nbytes and stored[key].numel == expected.numel()
        assert raw(got) == raw(expected)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def test_tensors_of_several_files_come_together(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "2.safetensors")
    stored = read_headers([tmp_path / "1.safetensors", tmp_path / "2.safetensors"], "gemma")
    assert {key: tensor.file.name for key, tensor in stored.items()} == {
        "a": "1.safetensors",
        "b": "2.safetensors",
    }


def test_data_that_is_not_aligned_is_read_all_the_same(tmp_path):
    header = json.dumps({"w": ENTRY}).encode()
    header += b" " * (3 - len(header) % 4)  # floats begin at an odd byte
    values = torch.arange(6, dtype=torch.float32)
    (tmp_path / FILE).write_bytes(packed(header, raw(values)))
    stored = read_headers([tmp_path / FILE], "gemma")
    assert torch.equal(stored["w"].read(), values.reshape(2, 3))


def rollup_bytes(*fields: str) -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.split()[0][:-1] in fields)


def file_maps() -> int:
    return Path("/proc/self/maps").read_text().count(FILE)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_a_tensor_is_a_map_that_costs_memory_when_touched_and_goes_with_it(tmp_path):
    size_bytes = 64 << 20
    save_file(
        {key: torch.ones(size_bytes, dtype=torch.uint8) for key in ("a", "b")}, tmp_path / FILE
    )
    stored = read_headers([tmp_path / FILE], "gemma")
    before = rollup_bytes("Pss")
    tensor = stored["b"].read()
    assert rollup_bytes("Pss") - before < size_bytes // 8
    assert file_maps() == 1
    assert int(tensor.sum()) == size_bytes
    touched = rollup_bytes("Pss") - before
    assert size_bytes * 0.9 < touched < size_bytes * 1.1
    del tensor
    assert file_maps() == 0
    assert rollup_bytes("Pss") - before < size_bytes // 8


def test_writing_into_a_tensor_does_not_reach_the_file(tmp_path):
    save_file({"w": torch.ones(1000)}, tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes()
    stored = read_headers([tmp_path / FILE], "gemma")
    stored["w"].read().zero_()
    assert (tmp_path / FILE).read_bytes() == before
    assert int(stored["w"].read().sum()) == 1000


@pytest.mark.parametrize("change", ["gone", "other shape", "damaged", "cut"])
def test_a_file_that_changes_after_the_check_is_an_error_not_a_crash(change, tmp_path):
    file = tmp_path / FILE
    save_file({"w": torch.ones(1000)}, file)
    stored = read_headers([file], "gemma")
    content = file.read_bytes()
    file.unlink()
    if change == "other shape":
        save_file({"w": torch.ones(10, 100)}, file)
    elif change != "gone":
        file.write_bytes(b"\xff" * len(content) if change == "damaged" else content[:-100])
    with pytest.raises(LoadError, match=re.escape(f"{FILE} was changed")) as caught:
        stored["w"].read()
    assert str(tmp_path) not in str(caught.value)


# --- files of another kind


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\x10\0\0", "is damaged: cut off after 3 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Access denied</html>", "is a web page"),
        (b"\n<html><body>502 Bad Gateway</body></html>", "is a web page"),
        (b"PK\x03\x04" + bytes(60), "pickle or a zip"),
        (b"\x80\x02}q\x00(X\x06\x00\x00\x00" + bytes(60), "pickle or a zip"),
        (b"GGUF\x03\0\0\0" + bytes(60), "is a GGUF file"),
        (b'{"error": "Invalid username or password."}', "no safetensors file"),
        (os.urandom(7) + b"\xff" + os.urandom(99), "no safetensors file"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(content, said, tmp_path):
    assert said in refusal(content, tmp_path)


def test_a_saved_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / FILE)
    assert "can run code" in refusal(None, tmp_path)
    torch.save({"w": torch.ones(2)}, tmp_path / FILE, _use_new_zipfile_serialization=False)
    assert "can run code" in refusal(None, tmp_path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    assert "is missing" in refusal(None, tmp_path)
    (tmp_path / FILE).symlink_to(tmp_path / "gone")
    assert "is a link to a file that is gone" in refusal(None, tmp_path)
    (tmp_path / FILE).unlink()
    os.mkfifo(tmp_path / FILE)
    assert "is not an ordinary file" in refusal(None, tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    assert "is a folder" in refusal(None, tmp_path)


# --- damage


@pytest.mark.parametrize(
    ("header", "data_bytes", "said"),
    [
        ({"w": ENTRY}, 23, "is damaged: 1 of 24 bytes are missing"),
        ({"w": ENTRY}, 25, "1 bytes too long"),
        ({}, 1, "1 bytes too long"),
        ({"w": ENTRY, "v": ENTRY}, 24, "overlaps another"),
        ({"w": ENTRY, "v": {**ENTRY, "data_offsets": [20, 44]}}, 44, "overlaps another"),
        ({"w": ENTRY, "v": {**ENTRY, "data_offsets": [28, 52]}}, 52, "leaves a gap"),
        ({"w": {**ENTRY, "data_offsets": [4, 28]}}, 28, "leaves a gap"),
        ({"w": {**ENTRY, "data_offsets": [24, 0]}}, 24, "not valid"),
        ({"w": {**ENTRY, "data_offsets": [-24, 0]}}, 24, "not valid"),
        ({"w": {**ENTRY, "data_offsets": [0, 24, 24]}}, 24, "not valid"),
        ({"w": {**ENTRY, "shape": [2, 4]}}, 24, "not valid"),
        ({"w": {**ENTRY, "shape": [-2, -3]}}, 24, "not valid"),
        ({"w": {**ENTRY, "shape": [2.0, 3]}}, 24, "not valid"),
        ({"w": {**ENTRY, "shape": [True, 6]}}, 24, "not valid"),
        ({"w": {**ENTRY, "shape": "23"}}, 24, "not valid"),
        ({"w": {**ENTRY, "shape": [1] * 9}}, 24, "not valid"),
        ({"w": {**ENTRY, "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}}, 0, "not valid"),
        ({"w": {**ENTRY, "shape": [1 << 63, 0], "data_offsets": [0, 0]}}, 0, "not valid"),
        ({"w": {**ENTRY, "dtype": "F4"}}, 24, "as 'F4', which cannot be read"),
        ({"w": {**ENTRY, "dtype": ["F32"]}}, 24, "not valid"),
        ({"w": {**ENTRY, "more": 1}}, 24, "not valid"),
        ({"w": {"dtype": "F32"}}, 24, "not valid"),
        ({"w": [1, 2]}, 24, "not valid"),
        (b'{"\\ud800":' + json.dumps(ENTRY).encode() + b"}", 24, "not valid"),
        ({"__metadata__": {"format": 1}, "w": ENTRY}, 24, "damaged metadata"),
        ({"__metadata__": ["pt"], "w": ENTRY}, 24, "damaged metadata"),
        (b'{"w":1,"w":1}', 0, "names something twice"),
        (b'{"w":{"dtype":"F32","dtype":"F32"}}', 0, "names something twice"),
        (b'{"w":', 0, "damaged header"),
        (b"\xff\xfe{}", 0, "damaged header"),
        (b" {}", 0, "damaged header"),
        (b"[1]", 0, "damaged header"),
        (b"", 0, "damaged header"),
        (b"9" * 5000, 0, "damaged header"),
        (b'{"w":' + b"[" * 30_000 + b"]" * 30_000 + b"}", 0, "damaged header"),
    ],
)
def test_a_damaged_header_is_refused_by_name(header, data_bytes, said, tmp_path):
    assert said in refusal(packed(header, bytes(data_bytes)), tmp_path)


def test_a_foreign_name_is_shown_short_and_on_one_line(tmp_path):
    key = "evil\n\x1b[2J" + "x" * 100_000
    header = {key: {**ENTRY, "shape": [1]}}
    assert "\x1b" not in refusal(packed(header, bytes(24)), tmp_path)


def test_a_key_in_two_files_is_refused_naming_both(tmp_path):
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for file in files:
        save_file({"w": torch.ones(1)}, file)
    with pytest.raises(LoadError, match=r"^2\.safetensors and 1\.safetensors of 'gemma' both"):
        read_headers(files, "gemma")


def flood(unit: bytes, before: bytes, after: bytes = b"") -> bytes:
    return before + unit * ((MAX_HEADER_BYTES - len(before + after)) // len(unit)) + after


@pytest.mark.parametrize(
    "header",
    [
        flood(b"{},", b'{"a":['),
        flood(b"[],", b'{"a":['),
        flood(b"1e5,", b'{"a":['),
        flood(b'"a":1,', b"{"),
        flood(b"\\u00e9", b'{"'),
        flood(b"9" * 4000 + b",", b'{"a":['),
        flood(b"[", b'{"a":'),
        flood(b'{"a":', b""),
        flood(b"x", b'{"', b'":1}'),
        json.dumps({f"{n:06}": {**ENTRY, "shape": [1]} for n in range(MAX_TENSORS)}).encode(),
        json.dumps({f"{n:06}": 1 for n in range(MAX_TENSORS + 5)}).encode(),
    ],
    ids=range(11),
)
def test_a_header_made_to_be_slow_is_refused_in_time(header, tmp_path):
    refusal(packed(header, b""), tmp_path)


def test_a_length_beyond_any_header_reads_nothing(tmp_path):
    for length in (MAX_HEADER_BYTES + 1, 1 << 40, (1 << 64) - 1):
        with (tmp_path / FILE).open("wb") as file:
            file.write(struct.pack("<Q", length))
            file.truncate(1 << 33)  # 8 GiB of nothing, on no disk
        assert "no safetensors file" in refusal(None, tmp_path)


# --- fuzz


def valid_file() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "model.a.weight": {"dtype": "BF16", "shape": [4, 3], "data_offsets": [0, 24]},
        "model.b.weight": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
        "model.c.weight": {"dtype": "U8", "shape": [0, 7], "data_offsets": [32, 32]},
        "model.d": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
    }
    return packed(header, bytes(range(40)))


WHOLE = valid_file()
MUTATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("set"), st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8)
        ),
        st.tuples(st.just("insert"), st.integers(0, len(WHOLE)), st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("delete"), st.integers(0, len(WHOLE)), st.integers(1, 40)),
    ),
    min_size=1,
    max_size=4,
)


def mutate(content: bytes, mutations: list[tuple[str, int, object]]) -> bytes:
    for kind, at, what in mutations:
        if kind == "delete":
            content = content[:at] + content[at + what :]
        else:
            content = content[:at] + what + content[at + (len(what) if kind == "set" else 0) :]
    return content


def check_any_bytes(content: bytes, file: Path) -> None:
    """Refused with a plain error, or every tensor can be read, and safetensors agrees with it."""
    file.write_bytes(content)
    started = time.process_time()
    try:
        stored = read_headers([file], "gemma")
    except LoadError as error:
        assert str(file.parent) not in str(error)
    else:
        for tensor in stored.values():
            got = tensor.read()
            assert (got.dtype, tuple(got.shape)) == (tensor.dtype, tensor.shape)
        with safe_open(file, "pt") as opened:
            assert set(opened.keys()) == set(stored)
    assert time.process_time() - started < MOST_SEC


@FUZZ
@given(MUTATIONS)
def test_mutated_files_are_refused_or_read(tmp_path, mutations):
    check_any_bytes(mutate(WHOLE, mutations), tmp_path / FILE)


NUMBERS = st.integers(-2, 50) | st.integers() | st.floats() | st.booleans()
JSON = st.recursive(
    st.none() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F4", "U16", "", "f32"]) | JSON,
        "shape": st.lists(NUMBERS, max_size=4) | JSON,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
    }
)


@FUZZ
@given(
    st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), ENTRIES | JSON, max_size=4),
    st.integers(0, 60),
)
def test_invented_headers_are_refused_or_read(tmp_path, header, data_bytes):
    check_any_bytes(packed(header, bytes(data_bytes)), tmp_path / FILE)


SHAPES = st.lists(st.integers(0, 4), max_size=4)


@FUZZ
@given(st.lists(st.tuples(st.sampled_from([*DTYPES]), SHAPES), max_size=6), st.randoms())
def test_any_tidy_file_comes_back_bit_for_bit(tmp_path, tensors, random):
    header, at = {}, 0
    for number, (kind, shape) in enumerate(tensors):
        size = int(torch.Size(shape).numel()) * DTYPES[kind].itemsize
        entry = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        header[f"w{number}"] = entry
        at += size
    data = random.randbytes(at)
    names = [*header]
    random.shuffle(names)  # files need not list tensors in the order of their bytes
    (tmp_path / FILE).write_bytes(packed({name: header[name] for name in names}, data))
    stored = read_headers([tmp_path / FILE], "gemma")
    assert len(stored) == len(tensors)
    for name, entry in header.items():
        tensor = stored[name].read()
        assert tensor.dtype == DTYPES[entry["dtype"]] and list(tensor.shape) == entry["shape"]
        start, stop = entry["data_offsets"]
        if tensor.dtype != torch.bool:  # other bytes than 0 and 1 are no bools
            assert raw(tensor) == data[start:stop]
