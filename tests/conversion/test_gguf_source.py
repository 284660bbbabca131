"""GGUF files that are written as GGUF again keep what is stored alike, byte by byte."""

import os

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

from gemma3vl_app.conversion.converting import Bridge, convert
from gemma3vl_app.conversion.gguf_source import FromGguf
from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.cache import CACHE_VARIABLE
from tests.conversion.test_gguf import files_of
from tests.loading.gguf_files import released_vocabulary, write_mmproj, write_text
from tests.loading.peft_adapters import KINDS, save_adapter

TABLES = {"q4_0": Kind.Q8_0}
MATRICES = {
    **{"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16},
    **{"q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0},
}
TOWERS = {"f32": Kind.F32, "f16": Kind.F16}
PROJECTION = "mm.input_projection.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """One cache for the files of these tests, apart from the user's."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "gguf-cache"))


@pytest.fixture(scope="module")
def precise(few_tokens, tmp_path_factory):
    """A checkpoint whose weights are no numbers of bf16, nor its norms one less than of fp32."""
    folder = tmp_path_factory.mktemp("precise")
    generator = torch.Generator().manual_seed(3)
    weights = {
        key: each.float() * (1 + torch.rand(each.shape, generator=generator) / 100)
        for key, each in load_file(few_tokens / "model.safetensors").items()
    }
    for file in few_tokens.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def released(precise, tmp_path_factory):
    """A function that writes the files of a type with the `gguf` package's own rule, as others do.

    Scales of blocks are whatever that rule gives: products with them are not numbers of bf16.
    """
    folders = {}

    def text(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("released")
            write_mmproj(folders[kind] / "mmproj.gguf", precise, kind=TOWERS.get(kind, Kind.BF16))
            write_text(
                folders[kind] / "text.gguf",
                precise,
                released_vocabulary().cut(),
                kind=MATRICES[kind],
                table=TABLES.get(kind),
            )
        return folders[kind] / "text.gguf"

    return text


def tensors_of(path):
    """Type and bytes of each tensor of a file."""
    return {
        each.name: (each.tensor_type, each.data.tobytes()) for each in gguf.GGUFReader(path).tensors
    }


# --- kept ---


@pytest.mark.parametrize("kind", MATRICES)
def test_every_tensor_of_the_same_type_keeps_its_bytes(released, tmp_path, kind):
    """Google's QAT files are such: rounding to bf16 on the way would change scales of blocks."""
    source = released(kind)
    again = files_of(convert(source, tmp_path / "out", "gguf", gguf_type=kind))
    for before, after in zip((source, source.with_name("mmproj.gguf")), again, strict=True):
        expected, found = tensors_of(before), tensors_of(after)
        assert found.keys() == expected.keys()
        differing = [name for name in expected if found[name] != expected[name]]
        # The projection is in the tower's type there, and always in F32 here
        projection = [] if kind == "f32" or "blk.0.attn_q.weight" in expected else [PROJECTION]
        assert differing == projection
        assert {type_ for type_, _ in expected.values()} >= {Kind.F32, TOWERS.get(kind, Kind.F32)}


def test_what_is_stored_in_another_type_is_stored_anew(released, tmp_path):
    source = released("q4_0")
    text, _ = files_of(convert(source, tmp_path / "out", "gguf", gguf_type="q8_0"))
    before, after = tensors_of(source), tensors_of(text)
    assert after["blk.0.attn_q.weight"][0] == Kind.Q8_0
    assert after["token_embd.weight"] == before["token_embd.weight"]
    numbers = {
        each.name: torch.from_numpy(gguf.dequantize(each.data, each.tensor_type).copy())
        for each in gguf.GGUFReader(source).tensors
    }
    bf16 = numbers["blk.0.attn_q.weight"].to(torch.bfloat16)
    assert (
        after["blk.0.attn_q.weight"][1] == gguf.quantize(bf16.float().numpy(), Kind.Q8_0).tobytes()
    )


def test_a_wish_for_fp32_changes_no_block(released, tmp_path):
    source = released("q4_0")
    out = convert(source, tmp_path / "out", "gguf", gguf_type="q4_0", precision="fp32")
    assert tensors_of(files_of(out)[0]) == tensors_of(source)


def test_matrices_that_an_adapter_changes_are_not_the_files_any_more(released, precise, tmp_path):
    source = released("q4_0")
    adapter = tmp_path / "adapter"
    save_adapter(precise, adapter, **KINDS["rslora"])
    out = convert(source, tmp_path / "out", "gguf", gguf_type="q4_0", adapter=adapter)
    before, after = tensors_of(source), tensors_of(files_of(out)[0])
    changed = {name for name in before if before[name] != after[name]}
    assert "blk.0.attn_q.weight" in changed
    assert all("attn" in name or "ffn" in name for name in changed)
    assert "token_embd.weight" not in changed


def test_a_source_that_is_cut_meanwhile_is_said(released, tmp_path):
    text = tmp_path / "text.gguf"
    text.write_bytes(released("q4_0").read_bytes())
    weight = Bridge.open(text).source.tensors["model.layers.5.mlp.down_proj.weight"]
    assert isinstance(weight, FromGguf)
    os.truncate(text, weight.place.start + 10)
    with pytest.raises(LoadError, match=r"'text.gguf' was changed while"):
        list(weight.stored())
