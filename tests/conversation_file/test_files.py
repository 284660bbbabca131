"""A conversation file gives back exactly what was saved, and bad files do no harm."""

import json
import os
import re
import struct
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma3vl_app.conversation_file import archive, files, open_saved, read_chat, write_chat
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.generation import Greedy, Sample, Timing, Usage
from gemma3vl_app.messages import Message, Text
from gemma3vl_app.transcript import ROOT, ModelIdentity, Transcript, Turn
from tests.conversation_file.chats import chat, drawn, generated, packed, repacked


@pytest.fixture
def saved(tmp_path):
    return write_chat(tmp_path / "a.chat.zip", chat())


# --- what is saved is what is read ---------------------------------------------------------------


def test_everything_comes_back(saved):
    found = read_chat(saved)
    assert found == chat()
    first = found.turns[0].message.pictures
    assert [picture.name for picture in first] == ["a.png", "b.png"]
    assert [picture.data for picture in first] == [drawn(10).data, drawn(20).data]
    assert found.turns[3].message.pictures[0].name == "again.png"
    assert found.turns[3].message.pictures[0].crops == "off"
    assert found.turns[2].generated[1].schema == {"type": "object"}


def test_a_picture_that_was_sent_twice_is_stored_once(saved):
    with zipfile.ZipFile(saved) as opened:
        assert sum(name.startswith("pictures/") for name in opened.namelist()) == 2


def test_an_empty_chat_can_be_saved(tmp_path):
    assert read_chat(write_chat(tmp_path / "x", Transcript())) == Transcript()


def test_the_file_says_when_and_with_what_it_was_made(saved):
    found = open_saved(saved)
    assert found.saved.endswith("Z")
    assert {"gemma3vl_app", "python", "torch", "transformers"} <= found.software.keys()
    assert found.changed_pictures == ()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
counts = st.integers(0, 2**63 - 1)
seconds = st.floats(0, 1e9)
pictures = st.builds(
    lambda shade, name, crops: drawn(shade, name).with_crops(crops),
    st.integers(0, 3),
    texts,
    st.sampled_from(["off", "on", "auto"]),
)
samplings = st.one_of(
    st.just(Greedy()),
    st.builds(
        Sample,
        temperature=st.floats(1e-9, 100),
        top_k=counts,
        top_p=st.floats(1e-9, 1),
        seed=st.none() | counts,
    ),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=5,
)
pieces = st.builds(
    generated,
    text=texts,
    ids=st.lists(counts, max_size=5).map(tuple),
    said_tokens=counts,
    finish_reason=st.sampled_from(["stop", "length", "cancelled"]),
    model=st.builds(
        ModelIdentity,
        name=texts,
        revision=texts,
        tokenizer_sha256=texts,
        weights=texts,
        arithmetic=texts,
    ),
    system=st.none() | texts,
    sampling=samplings,
    max_new_tokens=st.integers(1, 2**63 - 1),
    stop=st.lists(texts, max_size=2).map(tuple),
    schema=st.none() | st.dictionaries(texts, json_values, max_size=2),
    adapter=st.none() | texts,
    usage=st.builds(Usage, counts, counts, counts, counts),
    timing=st.builds(Timing, *[seconds] * 6),
)


@st.composite
def transcripts(draw):
    turns = []
    for index in range(draw(st.integers(0, 5))):
        role = draw(st.sampled_from(["user", "assistant"]))
        part = st.builds(Text, texts)
        parts = draw(st.lists(part | pictures if role == "user" else part, max_size=3))
        made = draw(st.lists(pieces, max_size=2)) if role == "assistant" else []
        parent = draw(st.integers(ROOT, index - 1))
        turns.append(Turn(Message(role, tuple(parts)), parent, tuple(made)))
    return Transcript(
        tuple(turns),
        draw(st.integers(ROOT, len(turns) - 1)),
        draw(st.none() | texts),
        draw(st.none() | samplings),
    )


@settings(max_examples=150, deadline=None)
@given(transcripts())
def test_any_chat_comes_back_as_it_was(tmp_path_factory, transcript):
    path = tmp_path_factory.mktemp("chats") / "x"
    found = read_chat(write_chat(path, transcript))
    assert found == transcript
    names = [[p.name for p in turn.message.pictures] for turn in found.turns]
    assert names == [[p.name for p in turn.message.pictures] for turn in transcript.turns]


# --- writing is atomic ----------------------------------------------------------------------------


def test_a_chat_that_cannot_be_saved_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    impossible = Transcript((Turn(Message("user", (Text("\ud800"),)), ROOT),))
    with pytest.raises(ConversationError, match="cannot be saved"):
        write_chat(saved, impossible)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.zipfile.ZipFile, "writestr", fail)
    with pytest.raises(ConversationError, match="No space left"):
        write_chat(saved, Transcript())
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_an_existing_file_is_replaced_only_where_that_was_said(saved):
    before = saved.read_bytes()
    with pytest.raises(ConversationError, match=r"'a\.chat\.zip' exists already"):
        write_chat(saved, Transcript(), overwrite=False)
    assert saved.read_bytes() == before
    write_chat(saved, Transcript())
    assert read_chat(saved) == Transcript()


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConversationError, match="No such file"):
        write_chat(tmp_path / "nowhere" / "x", Transcript())


def test_nothing_is_saved_that_could_not_be_opened(tmp_path, monkeypatch):
    path = tmp_path / "x"
    small = replace(archive.LIMITS, max_document_bytes=100)
    monkeypatch.setattr(archive.write_archive, "__defaults__", (small,))
    with pytest.raises(ConversationError, match="The chat's text takes"):
        write_chat(path, chat())
    assert not path.exists()


# --- damaged and hostile files --------------------------------------------------------------------


def refused(path) -> str:
    """Open a bad file; return its message, a short one without the folder's path."""
    before = sorted(os.listdir(path.parent))
    with pytest.raises(ConversationError) as error:
        open_saved(path)
    message = str(error.value)
    assert str(path.parent) not in message
    assert len(message) < 500
    assert sorted(os.listdir(path.parent)) == before
    return message


def test_a_missing_file_a_folder_and_a_strange_name_are_told(tmp_path):
    assert "No such file" in refused(tmp_path / "none.zip")
    assert "directory" in refused(tmp_path / "." / "..").lower()
    assert "not a file's name" in refused(tmp_path / "a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refused(tmp_path / "pipe")


@pytest.mark.parametrize("data", [b"", b"PK", b"hello" * 100, b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_what_is_no_zip_is_told(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert "damaged or no conversation file" in refused(tmp_path / "x")


def test_no_truncation_or_flipped_byte_goes_unnoticed(saved, tmp_path):
    whole, bad = saved.read_bytes(), tmp_path / "bad"
    for cut in range(0, len(whole), 37):
        bad.write_bytes(whole[:cut])
        refused(bad)
    for at in range(0, len(whole), 11):
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:  # a few bytes of a zip mean nothing: times, versions, attributes
            assert read_chat(bad) == chat()
        except ConversationError:
            continue


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "pictures/../../evil", "notes.txt", "pictures/" + "g" * 64]
)
def test_foreign_entries_are_refused_and_never_unpacked(tmp_path, name):
    packed(tmp_path / "x", {"conversation.json": b"{}", name: b"evil"})
    assert "does not belong there" in refused(tmp_path / "x")
    assert not (tmp_path.parent / "evil").exists()


def test_links_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w") as opened:
        entry = zipfile.ZipInfo("conversation.json")
        entry.external_attr = 0o120777 << 16
        opened.writestr(entry, "/etc/passwd")
    assert "is a link" in refused(tmp_path / "x")


def test_an_entry_that_comes_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w") as opened:
        opened.writestr("conversation.json", "{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            opened.writestr("conversation.json", "[]")
    assert "twice" in refused(tmp_path / "x")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    bomb = bytes(archive.LIMITS.max_document_bytes + 1)
    packed(tmp_path / "x", {"conversation.json": bomb})
    assert "unpacks to" in refused(tmp_path / "x")


def test_a_zip_bomb_that_lies_about_its_size_is_not_unpacked_either(tmp_path):
    data = bytes(archive.LIMITS.max_document_bytes + 1)
    packed(tmp_path / "x", {"conversation.json": data})
    lying = (tmp_path / "x").read_bytes().replace(struct.pack("<L", len(data)), b"\x10\0\0\0")
    (tmp_path / "x").write_bytes(lying)
    tracemalloc.start()
    try:
        refused(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < len(data) / 2
    finally:
        tracemalloc.stop()


def test_pictures_that_unpack_to_more_than_a_file_may_hold_are_not_unpacked(tmp_path, monkeypatch):
    small = replace(archive.LIMITS, max_file_bytes=10**6)
    monkeypatch.setattr(archive.Archive.__init__, "__defaults__", (small,))
    padded = drawn(1).data + bytes(10**5)
    names = {f"pictures/{number:064x}": padded for number in range(11)}
    packed(tmp_path / "x", {"conversation.json": b"{}", **names})
    assert (tmp_path / "x").stat().st_size < 10**5
    assert "unpacks to more than" in refused(tmp_path / "x")


def test_entries_that_its_end_does_not_count_are_refused(tmp_path):
    packed(tmp_path / "x", {f"{n:064x}": b"" for n in range(archive.LIMITS.max_entries + 1)})
    whole = bytearray((tmp_path / "x").read_bytes())
    end = whole.rindex(b"PK\x05\x06")
    whole[end + 8 : end + 12] = b"\1\0\1\0"
    (tmp_path / "x").write_bytes(whole)
    assert re.search("entries|does not belong", refused(tmp_path / "x"))


@pytest.mark.parametrize(
    "text",
    [
        b'{"turns": [' + b"1," * 10**6 + b"1]}",
        b'{"pictures": [' + b"{}," * 10**6 + b"1]}",
        b'{"software": {' + b",".join(b'"%d":1' % n for n in range(10**6)) + b"}}",
        b"{" + b",".join(b'"%d":1' % n for n in range(10**6)) + b"}",
    ],
    ids=["turns", "pictures", "software", "keys"],
)
def test_a_million_faults_are_found_out_cheaply(tmp_path, text):
    packed(tmp_path / "x", {"conversation.json": text})
    tracemalloc.start()
    try:
        refused(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number", [b"NaN", b"1e999", b"-Infinity"])
def test_infinite_numbers_are_refused_wherever_they_stand(saved, number):
    def put(document):
        document["turns"][1]["generated"][0]["answer_schema"] = {"maximum": "HERE"}

    repacked(saved, put)
    with zipfile.ZipFile(saved) as opened:
        entries = {name: opened.read(name) for name in opened.namelist()}
    entries["conversation.json"] = entries["conversation.json"].replace(b'"HERE"', number)
    assert "damaged" in refused(packed(saved, entries))


def test_a_schema_that_could_not_be_read_again_is_not_saved(tmp_path):
    deep: dict = {}
    for _ in range(230):
        deep = {"not": deep}
    turns = (*chat().turns[:1], replace(chat().turns[1], generated=(generated(schema=deep),)))
    with pytest.raises(ConversationError, match="cannot be saved"):
        write_chat(tmp_path / "x", Transcript(turns))
    assert not (tmp_path / "x").exists()


def test_too_many_pixels_are_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_PIXELS", 40)
    with pytest.raises(ConversationError, match="billion pixels"):
        write_chat(tmp_path / "x", chat())


def test_numpy_s_numbers_are_saved_as_numbers(tmp_path):
    sampling = Sample(seed=np.int64(3), top_k=np.int64(5))
    found = read_chat(write_chat(tmp_path / "x", replace(chat(), sampling=sampling)))
    assert found.sampling == Sample(seed=3, top_k=5)


def test_a_file_with_endless_entries_is_refused_before_they_are_listed(tmp_path, monkeypatch):
    names = {f"{number:064x}": b"" for number in range(archive.LIMITS.max_entries + 1)}
    packed(tmp_path / "x", names)
    monkeypatch.setattr(archive.zipfile, "ZipFile", lambda *_: 1 / 0)
    assert "entries" in refused(tmp_path / "x")


def test_a_large_table_of_contents_and_a_zip64_one_are_refused(tmp_path):
    packed(tmp_path / "x", {"conversation.json": b"{}"})
    whole = (tmp_path / "x").read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    size = struct.pack("<L", archive.LIMITS.max_directory_bytes + 1)
    (tmp_path / "x").write_bytes(whole[: end + 12] + size + whole[end + 16 :])
    assert "table of contents is too large" in refused(tmp_path / "x")
    (tmp_path / "x").write_bytes(whole[:end] + b"PK\x06\x07" + bytes(16) + whole[end:])
    assert "entries" in refused(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(version=2), "version 2; this program reads version 1"),
        (lambda d: d.update(format="other"), "format is not"),
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d.pop("turns") and None, "turns"),
        (lambda d: d.update(head=9), "stands at turn 9"),
        (lambda d: d["turns"][1].update(parent=1), "does not come before it"),
        (lambda d: d["turns"][1].update(role="system"), "role"),
        (lambda d: d["turns"][0].update(generated=d["turns"][1]["generated"]), "user's, yet"),
        (lambda d: d["turns"][1]["generated"][0].update(model=5), "a model that it does not"),
        (lambda d: d["turns"][1]["generated"][0].update(ids=[-1]), "ids"),
        (lambda d: d["turns"][1]["generated"][0].update(ids=[10**30]), "ids"),
        (lambda d: d["turns"][0]["parts"].pop(2) and None, "pictures are not those"),
        (lambda d: d["turns"][0]["parts"][0].update(file="f" * 64), "pictures are not those"),
        (lambda d: d["pictures"][0].update(width=10**6), "another size"),
        (lambda d: d["pictures"][0].update(width=5), "another size"),
        (lambda d: d["pictures"].append(d["pictures"][0]), "pictures are not those"),
        (lambda d: [1, 2], "format is not"),
    ],
)
def test_a_document_that_makes_no_sense_is_refused(saved, change, told):
    assert told in refused(repacked(saved, change))


def test_endless_nesting_is_refused(tmp_path):
    packed(tmp_path / "x", {"conversation.json": b"[" * 10**6})
    assert "damaged" in refused(tmp_path / "x")


def test_pictures_that_are_too_large_together_are_not_decoded(saved, monkeypatch):
    monkeypatch.setattr(files, "MAX_PIXELS", 40)
    monkeypatch.setattr(files.Picture, "open", lambda *_, **__: 1 / 0)
    assert "too large together" in refused(saved)


def test_bytes_under_another_picture_s_name_are_refused(saved):
    with zipfile.ZipFile(saved) as opened:
        entries = {name: opened.read(name) for name in opened.namelist()}
    first, second = [name for name in entries if name.startswith("pictures/")]
    entries[first] = entries[second]
    assert "not those that it was named after" in refused(packed(saved, entries))


def test_a_picture_that_another_decoder_reads_differently_is_named(saved):
    def forget(document):
        for number, picture in enumerate(document["pictures"]):
            picture["pixels_sha256"] = f"{number:064x}"

    found = open_saved(repacked(saved, forget))
    assert set(found.changed_pictures) <= {"a.png", "again.png", "b.png"}
    assert len(found.changed_pictures) == 2
    assert found.transcript == chat()


def test_the_page_about_the_file_names_every_field():
    from pathlib import Path

    from gemma3vl_app.conversation_file import document

    page = (Path(__file__).parents[2] / "docs" / "conversation-file.md").read_text("utf-8")
    models = [m for m in vars(document).values() if isinstance(m, type)]
    fields = {
        name
        for model in models
        if issubclass(model, document.Strict)
        for name in model.model_fields
    }
    assert not [name for name in fields if f"`{name}`" not in page]


def test_the_document_is_plain_json_for_other_programs(saved):
    with zipfile.ZipFile(saved) as opened:
        found = json.loads(opened.read("conversation.json"))
    assert (found["format"], found["version"]) == ("gemma3vl-chat", 1)
