"""Schemas are read from files with plain errors, and closed so that answers come to an end."""

import json

import pytest

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.schemas import LARGEST_SCHEMA_BYTES, closed, parse_json, read_schema


def test_objects_are_closed_at_every_depth():
    inner = {"type": "object", "properties": {"a": {"type": "string"}}}
    schema = {
        "properties": {"list": {"type": "array", "items": inner}, "either": {"anyOf": [inner]}},
        "$defs": {"Inner": inner},
    }
    found = closed(schema)
    assert found["additionalProperties"] is False
    for each in (
        found["properties"]["list"]["items"],
        found["properties"]["either"]["anyOf"][0],
        found["$defs"]["Inner"],
    ):
        assert each["additionalProperties"] is False
    assert "additionalProperties" not in inner


def test_an_object_that_says_what_else_it_holds_keeps_that():
    schema = {"properties": {"a": {}}, "additionalProperties": {"type": "string"}}
    assert closed(schema) == schema
    assert closed({"type": "object"}) == {"type": "object"}


def test_names_and_data_that_look_like_keywords_are_left_alone():
    named = {"properties": {"properties": {"type": "object"}, "enum": {"properties": {"a": {}}}}}
    found = closed(named)
    assert found["properties"]["properties"] == {"type": "object"}
    assert found["properties"]["enum"]["additionalProperties"] is False
    assert found.keys() == {"properties", "additionalProperties"}
    data = {"const": {"properties": {"a": 1}}, "enum": [{"properties": {}}]}
    assert closed(data) == data


def test_a_schema_is_read_from_a_file(tmp_path):
    schema = {"type": "object", "properties": {"größe": {"type": "number"}}}
    (tmp_path / "s.json").write_text(json.dumps(schema, ensure_ascii=False), encoding="utf-8")
    assert read_schema(tmp_path / "s.json") == schema
    assert read_schema(str(tmp_path / "s.json")) == schema


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", r"not valid JSON \(line 1, column 2: .*\)\. Correct the file"),
        (b'{"type": "object", "type": "array"}', "the key 'type' twice"),
        (b'{"properties": {"a": {}, "b": {}, "a": {"type": "string"}}}', "the key 'a' twice"),
        (b"\xff\xfe\x00\xd8", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "no JSON schema"),
        (b"true", "no JSON schema"),
        (b'"' + b" " * LARGEST_SCHEMA_BYTES + b'"', "at most 1 MiB"),
    ],
    ids=["cut", "twice", "twice inside", "bytes", "deep", "list", "boolean", "huge"],
)
def test_what_is_no_schema_is_told_with_its_name(tmp_path, content, told):
    file = tmp_path / "s.json"
    file.write_bytes(content)
    with pytest.raises(ConversationError, match=told) as raised:
        read_schema(file)
    assert "'s.json'" in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConversationError, match="cannot be read") as raised:
            read_schema(path)
        assert str(tmp_path.parent) not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1, "b": [{"c": 1, "c": 1}]}', "the key 'c' twice"),
        ('{"a": 1,}', "line 1, column "),
        (b'{"a": "\xff"}', "UTF-8"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_readers_would_disagree_about_is_none(text, told):
    with pytest.raises(ValueError, match=told):
        parse_json(text)
    assert parse_json('{"a": {"a": [1, null]}}') == {"a": {"a": [1, None]}}
