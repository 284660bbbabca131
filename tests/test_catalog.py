"""The models known by name: complete, consistent, and found by what people type."""

import pytest

from gemma3vl_app import catalog
from gemma3vl_app.errors import LoadError

# tests/planning/test_architecture.py counts parameters on the classes.


def test_every_size_and_release_is_there():
    names = set(catalog.MODELS)
    assert {f"{size}-it" for size in ("270m", "1b", "4b", "12b", "27b")} <= names
    assert {f"{size}-pt" for size in ("270m", "1b", "4b", "12b", "27b")} <= names
    for size in ("1b", "4b", "12b", "27b"):
        assert {f"{size}-it-qat-q4_0", f"{size}-it-qat-int4"} <= names
    assert len(names) == 19


@pytest.mark.parametrize("entry", catalog.MODELS.values(), ids=lambda entry: entry.name)
def test_an_entry_is_complete(entry):
    assert catalog.MODELS[entry.name] is entry
    assert entry.title and entry.knows.endswith(".")
    assert entry.card.startswith("https://huggingface.co/google/gemma-3-")
    assert entry.licence == "Gemma Terms of Use"
    assert entry.pictures == ("vision_config" in catalog.published_config(entry.size))
    if entry.repo:
        assert catalog.find(entry.repo) is entry
        assert entry.size in entry.repo
    assert catalog.find(entry.name) is entry


def test_releases_for_quantisation_are_the_unquantized_repositories():
    for entry in catalog.MODELS.values():
        assert entry.repo.endswith("-unquantized") == ("qat" in entry.name)


def test_unknown_names_are_not_found():
    assert catalog.find("google/gemma-2-9b") is None
    assert catalog.find("") is None


def test_a_model_may_be_a_name_a_hub_id_a_folder_or_a_gguf_file(tmp_path):
    (tmp_path / "a.GGUF").touch()
    for source in ("4b-it", "owner/name", str(tmp_path), tmp_path, tmp_path / "a.GGUF"):
        catalog.check_source(source)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("4b", "Did you mean"),
        ("27B-IT", "'27b-it'"),
        ("gibberish", "gemma3vl models"),
        ("/secret/folder/missing", "'missing'"),
        ("/secret/folder/missing.gguf", "no file 'missing.gguf'"),
        ("owner/missing.gguf", "no file 'missing.gguf'"),
        ("~nobody-here/x", "'x'"),
        ("nul\0", "There is no model"),
        ("y" * 100_000, "There is no model"),
        ("y" * 100_000 + ".gguf", "There is no file"),
    ],
)
def test_what_is_no_model_is_told_in_one_short_line(source, told):
    with pytest.raises(LoadError) as error:
        catalog.check_source(source)
    text = str(error.value)
    assert told in text
    assert "secret" not in text
    assert len(text) < 500 and len(text.splitlines()) == 1
