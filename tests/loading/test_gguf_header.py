"""Any bytes give a summary or a plain error, and quickly."""

import os
import struct
import time

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.gguf_header import check_gguf, open_gguf, stored_shape
from tests.loading.gguf_files import add_tensor, finished, header_of_the_270m, released_vocabulary

fuzz = settings(
    max_examples=300,
    deadline=1000,  # milliseconds an example may take
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A valid file with every type of value, and tensors of several kinds."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint16("a.u16", 60_000)
    writer.add_int16("a.i16", -300)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -4)
    writer.add_float32("a.f32", 0.5)
    writer.add_uint64("a.u64", 2**63)
    writer.add_int64("a.i64", -(2**62))
    writer.add_float64("a.f64", 1e-3)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "naïve 日本")
    writer.add_array("a.texts", ["", "one", "日本"])
    writer.add_array("a.numbers", [1, 2, 3])
    numbers = np.arange(128, dtype=np.float32).reshape(2, 64)
    for kind in (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0):
        add_tensor(writer, f"{kind.name}.weight", numbers, kind)
    add_tensor(writer, "cube", np.zeros((2, 3, 4, 5), np.float32), Kind.F32)
    return finished(writer, path)


def refusal(tmp_path, data, name="bad.gguf"):
    path = tmp_path / name
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(LoadError) as caught:
        check_gguf(path, name)
    assert time.process_time() - start < 1
    message = str(caught.value)
    assert name in message and str(tmp_path) not in message
    assert len(message) < 300
    return message


# --- what a file is made of, byte by byte ---


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def setting(key, kind=4, value=None):
    return text(key) + struct.pack("<I", kind) + (struct.pack("<I", 7) if value is None else value)


def tensor(name, shape=(32,), kind=0, offset=0):
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def file(values=(), tensors=(), *, version=3, tail=4096, counts=None):
    numbers = counts or (len(tensors), len(values))
    head = b"GGUF" + struct.pack("<IQQ", version, *numbers)
    return head + b"".join(values) + b"".join(tensors) + bytes(tail)


# --- what is good ---


def test_a_summary_says_what_the_file_holds(small):
    summary = check_gguf(small, "small")
    assert summary.architecture == "gemma3"
    assert {key: v for key, v in summary.values.items() if key.startswith("a.")} == {
        **{"a.u8": 200, "a.i8": -3, "a.u16": 60_000, "a.i16": -300, "a.u32": 4_000_000_000},
        **{"a.i32": -4, "a.f32": 0.5, "a.u64": 2**63, "a.i64": -(2**62), "a.f64": 1e-3},
        **{"a.bool": True, "a.text": "naïve 日本"},
    }
    assert summary.arrays.keys() == {"a.texts", "a.numbers"}
    assert summary.arrays["a.texts"].length == 3
    shapes = {each.name: (each.shape, each.kind, each.bytes) for each in summary.tensors}
    assert shapes["Q8_0.weight"] == ((2, 64), Kind.Q8_0, 136)
    assert shapes["cube"] == ((2, 3, 4, 5), Kind.F32, 480)


def test_it_reads_what_the_gguf_package_reads(small):
    ours, theirs = open_gguf([small]), gguf.GGUFReader(small)
    for key in ours.fields:
        assert ours.fields[key].contents() == theirs.fields[key].contents(), key
    for one, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (one.name, one.tensor_type) == (other.name, other.tensor_type)
        assert one.data.tobytes() == other.data.tobytes()
        assert stored_shape(one) == stored_shape(other) == tuple(other.shape[::-1])


def test_version_2_is_read(tmp_path):
    path = tmp_path / "two.gguf"
    path.write_bytes(file([setting("a")], [tensor("t")], version=2))
    assert check_gguf(path, "two").values == {"a": 7}


def test_a_released_header_takes_well_under_a_second(tmp_path):
    """262,144 tokens with scores and kinds; the gguf package takes about ten seconds."""
    path = header_of_the_270m(tmp_path)
    start = time.process_time()
    summary = check_gguf(path, "270m")
    assert time.process_time() - start < 0.5
    assert summary.arrays["tokenizer.ggml.tokens"].length == 262_144
    assert len(summary.tensors) == 236
    assert released_vocabulary().tokens[105] == "<start_of_turn>"


# --- what is not ---


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too short"),
        (b"GGUF" + bytes(12), "too short"),
        (b"\x80\x02}q\x00" + bytes(100), "not a GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (file(version=1), "version 1"),
        (file(version=4), "version 4"),
        (file(counts=(2**63, 0)), "announces"),
        (file(counts=(0, 2**63)), "announces"),
        (file([setting("a"), setting("a")]), "'a' twice"),
        (file([setting("a", 13)]), "unknown type"),
        (file([setting("a", 7, b"\x02")]), "neither true nor false"),
        (file([setting("a", 8, struct.pack("<Q", 2**62))]), "too long"),
        (file([setting("a", 8, text(b"\xff\xfe"))]), "not UTF-8"),
        (file([setting("a", 9, struct.pack("<IQ", 9, 1))]), "a list of an unknown type"),
        (file([setting("a", 9, struct.pack("<IQ", 4, 2**62))]), "cut short"),
        (file([setting("a", 9, struct.pack("<IQ", 8, 2**40))]), "texts"),
        (file([setting("a", 9, struct.pack("<IQ", 8, 1000))]), "cut short"),
        (file([setting("a", 9, struct.pack("<IQQ", 8, 2, 2**63))]), "cut short"),
        (file([setting("general.alignment", 4, struct.pack("<I", 0))]), "alignment"),
        (file([setting("general.alignment", 4, struct.pack("<I", 48))]), "alignment"),
        (file([setting("general.alignment", 8, text("x"))]), "alignment"),
        (file([], [tensor("t"), tensor("t", offset=128)]), "'t' twice"),
        (file([], [tensor("t"), tensor("u", offset=64)]), "overlaps"),
        (file([], [tensor("t", (2**20,))]), "not all there"),
        (file([], [tensor("t", offset=2**62)]), "not all there"),
        (file([], [tensor("t", offset=31)]), "not all there"),
        (file([], [tensor("t", (2**63, 2**63, 2**63, 2**63))]), "not all there"),
        (file([], [tensor("t", (0,))]), "impossible shape"),
        (file([], [tensor("t", (33,), kind=8)]), "impossible shape for Q8_0"),
        (file([], [tensor("t", ())]), "0 dimensions"),
        (file([], [tensor("t", (1,) * 5)]), "5 dimensions"),
        (file([], [tensor("t", kind=4)]), "unknown type"),
        (file([], [tensor("t" * 600)]), "too long"),
    ],
)
def test_damage_is_named(tmp_path, data, message):
    assert message in refusal(tmp_path, data)


def test_a_name_in_a_message_is_short_and_printable(tmp_path):
    message = refusal(tmp_path, file([], [tensor("\x1b[31m" + "x" * 300, kind=4)]))
    assert "\x1b" not in message


def test_a_folder_a_pipe_and_nothing_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("pipe.gguf", "", "missing.gguf"):
        with pytest.raises(LoadError, match="no file"):
            check_gguf(tmp_path / name, "x.gguf")


@pytest.mark.parametrize(
    "head",
    [
        file([setting("a", 9, struct.pack("<IQ", 8, 1 << 20))], tail=0),
        file(counts=(0, 1 << 12), tail=0),
        file(counts=(1 << 14, 0), tail=0),
        file([setting("a", 9, struct.pack("<IQ", 4, 1 << 33))], tail=0),
    ],
)
def test_a_huge_file_of_zeros_is_settled_quickly(tmp_path, head):
    """What it announces could all be there: only the limits keep the work small."""
    path = tmp_path / "zeros.gguf"
    path.write_bytes(head)
    os.truncate(path, 1 << 36)
    start = time.process_time()
    try:
        check_gguf(path, "zeros.gguf")
    except LoadError as error:
        assert "zeros.gguf" in str(error)
    assert time.process_time() - start < 1


def test_every_cut_is_noticed(small, tmp_path):
    """The last tensor reaches to the end of the file but for padding."""
    end = max(each.start + each.bytes for each in check_gguf(small, "small").tensors)
    path = tmp_path / "cut.gguf"
    path.write_bytes(small.read_bytes())
    for length in reversed(range(end)):
        os.truncate(path, length)
        with pytest.raises(LoadError):
            check_gguf(path, "cut.gguf")


def passes_or_refuses(path):
    try:
        reader = open_gguf([path])
        for field in reader.fields.values():
            field.contents()
        for each in reader.tensors:
            assert each.data.nbytes > 0
    except LoadError as error:
        assert len(str(error)) < 300


@fuzz
@given(data=st.data())
def test_changed_bytes_pass_or_are_refused(small, tmp_path, data):
    content = bytearray(small.read_bytes())
    header = check_gguf(small, "small").data_start
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header - 1))
        piece = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8]))
        content[at : at + len(piece)] = piece
    path = tmp_path / "changed.gguf"
    path.write_bytes(content)
    passes_or_refuses(path)


@fuzz
@given(data=st.binary(max_size=400), headed=st.booleans())
def test_random_bytes_pass_or_are_refused(tmp_path, data, headed):
    path = tmp_path / "random.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + data if headed else data)
    passes_or_refuses(path)
