"""What an mmproj file holds: names, swapped matrices, settings, and whose it is."""

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.checkpoint import in_memory_name
from gemma3vl_app.loading.gguf_header import open_gguf
from gemma3vl_app.loading.gguf_vision import read_vision, read_vision_weights, vision_names
from tests.loading.gguf_files import write_mmproj


@pytest.fixture(scope="module")
def original(tiny):
    """The tower's and projector's weights, by transformers 5's names in memory."""
    weights = load_file(tiny / "model.safetensors")
    return {in_memory_name(k): v for k, v in weights.items() if "language_model" not in k}


@pytest.mark.parametrize("swapped", [False, True], ids=["new names", "old names"])
@pytest.mark.parametrize("kind", [Kind.F32, Kind.BF16])
def test_every_weight_comes_back_bit_for_bit(tiny, original, tmp_path, kind, swapped):
    path = write_mmproj(tmp_path / "mmproj.gguf", tiny, kind=kind, swapped=swapped)
    names = {each.name: each.data.shape for each in open_gguf([path]).tensors}
    width = 4 if kind == Kind.F32 else 2
    assert names["v.blk.0.ffn_down.weight"] == ((96, 48 * width) if swapped else (48, 96 * width))
    weights = dict(read_vision_weights(open_gguf([path])))
    assert weights.keys() == original.keys()
    for name, weight in weights.items():
        assert weight.dtype == torch.bfloat16
        if name.endswith("soft_emb_norm.weight"):  # 1 + w in fp32 rounds very small w
            assert torch.allclose(weight.float(), original[name].float(), atol=1e-7)
        else:
            assert torch.equal(weight, original[name]), name


def test_f16_comes_back_as_f16_rounds_it(tiny, original, tmp_path):
    path = write_mmproj(tmp_path / "mmproj.gguf", tiny, kind=Kind.F16)
    weights = dict(read_vision_weights(open_gguf([path])))
    for name, weight in weights.items():
        rounded = original[name].half().to(torch.bfloat16)
        assert torch.allclose(weight.float(), rounded.float(), atol=1e-7), name


def test_settings_come_from_the_file(tiny, tmp_path):
    vision = read_vision(open_gguf([write_mmproj(tmp_path / "mmproj.gguf", tiny)]))
    assert vision.image_tokens == 16
    assert vision.text_width == 64
    assert vision.config["layer_norm_eps"] == pytest.approx(1e-6)
    assert (vision.config["image_size"], vision.config["patch_size"]) == (64, 8)
    assert vision.preprocessor["image_mean"] == [0.5, 0.5, 0.5]
    assert vision.preprocessor["size"] == {"height": 64, "width": 64}


def header(path, tensors=(), **changes):
    """An mmproj of the released tower's settings, and of the projection alone."""
    writer = gguf.GGUFWriter(path, "clip")
    settings = {
        "clip.projector_type": "gemma3",
        "clip.vision.image_size": 896,
        "clip.vision.patch_size": 14,
        "clip.vision.embedding_length": 48,
        "clip.vision.feed_forward_length": 4304,
        "clip.vision.block_count": 1,
        "clip.vision.attention.head_count": 16,
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }
    for key, value in (settings | changes).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name in ("mm.input_projection.weight", *tensors):
        writer.add_tensor(name, torch.zeros(48, 64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_gguf([path])


def test_the_released_settings_give_256_tokens_a_picture(tmp_path):
    assert read_vision(header(tmp_path / "m.gguf")).image_tokens == 256


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("clip.projector_type", "gemma3nv", "'gemma3nv'"),
        ("clip.projector_type", "qwen2vl_merger", "another kind of model"),
        ("clip.vision.image_size", 900, "does not come out even"),
        ("clip.vision.image_size", None, "image_size"),
        ("clip.vision.embedding_length", 49, "damaged"),
        ("clip.vision.block_count", 2**30, "announces"),
        ("clip.vision.image_std", [0.5, 0.5], "image_std"),
        ("clip.vision.image_std", [0.5, 0.5, 0.0], "image_std"),
        ("clip.vision.attention.layer_norm_epsilon", float("inf"), "layer_norm_epsilon"),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path, key, value, message):
    with pytest.raises(LoadError, match=message):
        read_vision(header(tmp_path / "m.gguf", **{key: value}))


def test_a_language_model_is_no_mmproj(tiny, tmp_path):
    path = write_mmproj(tmp_path / "mmproj.gguf", tiny, architecture="llama")
    with pytest.raises(LoadError, match="'llama' model; expected an mmproj"):
        read_vision(open_gguf([path]))


def test_missing_and_unknown_tensors_are_named(tiny, tmp_path):
    path = write_mmproj(tmp_path / "m.gguf", tiny, keep=lambda n: n != "v.blk.1.ln2.bias")
    with pytest.raises(LoadError, match=r"layers\.1\.layer_norm2\.bias"):
        vision_names(open_gguf([path]))


def test_an_unknown_tensor_is_named(tmp_path):
    with pytest.raises(LoadError, match=r"'v\.class_embd'"):
        vision_names(header(tmp_path / "m.gguf", tensors=["v.class_embd"]))
