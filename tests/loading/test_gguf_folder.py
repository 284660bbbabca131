"""GGUF files through the real loader and engine give what the safetensors original gives."""

import json
import os
import shutil
from pathlib import Path
from random import Random
from time import process_time

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from transformers import Gemma3ForConditionalGeneration

from gemma3vl_app.backends.local import load
from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.loading import load_model
from gemma3vl_app.loading.cache import CACHE_VARIABLE
from gemma3vl_app.loading.checkpoint import in_memory_name, open_checkpoint
from gemma3vl_app.loading.gguf_folder import gguf_folder, gguf_notes
from gemma3vl_app.loading.gguf_header import check_gguf
from gemma3vl_app.loading.gguf_model import is_gguf, text_parts
from gemma3vl_app.messages import Conversation
from gemma3vl_app.testing import tiny_checkpoint
from tests.engine.reference import Reference, greedy, picture
from tests.loading.gguf_files import (
    as_stored,
    cut_checkpoint,
    released_vocabulary,
    write_mmproj,
    write_text,
)

EXACT = (Kind.F32, Kind.BF16)
IMAGE_TOKENS = 16
LONG = 700  # positions, far past the window of 32


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """One cache for the session's GGUF files, apart from the user's."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "gguf-cache"))


@pytest.fixture(scope="module")
def vocabulary():
    return released_vocabulary().cut()


@pytest.fixture(scope="module")
def small(tiny, tmp_path_factory, vocabulary):
    """The tiny checkpoint with a small vocabulary."""
    return cut_checkpoint(tiny, tmp_path_factory.mktemp("small") / "small", vocabulary)


def transformers_model(folder, change=lambda name, weight: weight):
    """The original by transformers, in fp32, with some weights changed."""
    model = Gemma3ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(change(name, weight))
    return model


@pytest.fixture(scope="module")
def original(small):
    return transformers_model(small)


@pytest.fixture(scope="module")
def files(small, tmp_path_factory, vocabulary):
    """A function that writes a model's two files into a folder of their own."""

    def write(kind=Kind.BF16, *, tower: Kind | None = Kind.F32, checkpoint=small, **options):
        folder = tmp_path_factory.mktemp("files")
        words = options.pop("words", vocabulary)
        if tower is not None:
            write_mmproj(folder / "mmproj-small.gguf", checkpoint, kind=tower)
        return write_text(folder / "small.gguf", checkpoint, words, kind=kind, **options)

    return write


@torch.inference_mode()
def logits(model, ids, pixel_values=None):
    types = (ids == model.config.image_token_id).long() if pixel_values is not None else None
    return model(input_ids=ids, token_type_ids=types, pixel_values=pixel_values).logits[0]


def prompt(vocabulary, length=60, pictures=0):
    """Ids of a prompt (1, n), and random pixels for its pictures."""
    generator = torch.Generator().manual_seed(1)
    ids = [2, *torch.randint(300, 600, (length,), generator=generator).tolist()]
    begin, end = (vocabulary.tokens.index(t) for t in ("<start_of_image>", "<end_of_image>"))
    for _ in range(pictures):
        ids += [begin, *[len(vocabulary.tokens)] * IMAGE_TOKENS, end, 310, 311]
    pixels = torch.rand((pictures, 3, 64, 64), generator=generator) * 2 - 1
    return torch.tensor([ids]), pixels if pictures else None


def loaded(path, weights="fp32"):
    return load_model(gguf_folder(path), weights=weights)


def assert_same(model, reference, vocabulary, **shape):
    """Logits of both, on the rows that tokens have, within rounding of the norms (1 + w)."""
    ids, pixels = prompt(vocabulary, **shape)
    rows = len(vocabulary.tokens)
    ours, theirs = (logits(each, ids, pixels)[:, :rows] for each in (model, reference))
    assert torch.allclose(ours, theirs, atol=1e-4)


# --- the same numbers ---


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("pictures", [0, 2])
def test_unquantised_files_give_the_originals_logits(files, original, vocabulary, kind, pictures):
    model = loaded(files(kind)).model
    assert type(model) is Gemma3ForConditionalGeneration
    assert_same(model, original, vocabulary, pictures=pictures)


def test_the_weights_are_bit_equal(files, small):
    ours = loaded(files(Kind.F32)).model.state_dict()
    for key, weight in load_file(small / "model.safetensors").items():
        mine = ours[in_memory_name(key)]
        expected = weight.float()[: len(mine)]
        # A norm is stored as 1 + w in fp32: all of w but its last bits below 1e-7
        exact = not key.endswith("norm.weight")
        same = torch.equal(mine, expected) if exact else torch.allclose(mine, expected, atol=1e-7)
        assert same, key


# Of a block's largest number: half a step of 127; a step of 8, since -8 exists and 8 does not
@pytest.mark.parametrize(("kind", "step"), [(Kind.Q8_0, 0.5 / 127 * 1.1), (Kind.Q4_0, 1 / 8)])
def test_quantised_files_differ_by_the_quantisation_alone(
    files, small, original, vocabulary, kind, step
):
    def stored(name, weight):
        matrix = weight.dim() == 2 and "language_model" in name
        return as_stored(weight, kind).float() if matrix else weight

    expected = transformers_model(small, stored)
    model = loaded(files(kind)).model
    # 1) Equal to the original with its matrices stored the same way, pictures included
    assert_same(model, expected, vocabulary, pictures=1)
    # 2) No weight is further from the original than the format's step, and bf16's
    for key, weight in load_file(small / "model.safetensors").items():
        name = in_memory_name(key)
        if weight.dim() != 2 or "language_model" not in name:
            continue
        mine = model.state_dict()[name].reshape(-1, 32)
        blocks = weight.float().reshape(-1, 32)[: len(mine)]
        largest = blocks.abs().amax(1, keepdim=True)
        assert ((mine - blocks).abs() <= largest * (step + 2**-8)).all(), name
    # 3) So the logits are as far from the original's as the format puts them, and no further
    ids, pixels = prompt(vocabulary, pictures=1)
    rows = len(vocabulary.tokens)
    ours, same, theirs = (
        logits(each, ids, pixels)[:, :rows] for each in (model, expected, original)
    )
    error, own_error = (float((each - theirs).norm() / theirs.norm()) for each in (ours, same))
    assert error == pytest.approx(own_error, rel=1e-3)
    if kind == Kind.Q8_0:  # four bits say little about random weights
        assert 1e-4 < error < 0.1


@pytest.mark.parametrize("words", ["plain", "padded"])
def test_padding_rows_may_be_there_or_not(files, original, vocabulary, words):
    chosen = vocabulary.padded() if words == "padded" else vocabulary
    model = loaded(files(Kind.BF16, words=chosen)).model
    assert model.config.text_config.vocab_size == len(chosen.tokens)
    assert_same(model, original, vocabulary, pictures=1)


def test_the_engine_answers_as_a_full_recompute_of_the_original(files, small, vocabulary):
    path = files(Kind.BF16, words=vocabulary.padded())
    conversation = Conversation().user(picture(1), picture(2), "Which one is it? " * 5)
    with load(gguf_folder(path), weights="fp32") as backend:
        reference = Reference(transformers_model(small), backend)
        first = greedy(backend, conversation)
        reference.check(conversation, first)
        more = conversation.assistant(first.text).user(picture(3), "And this one?")
        reference.check(more, greedy(backend, more))


def test_the_engine_takes_pictures_where_the_image_token_has_no_row(files, small, vocabulary):
    with load(gguf_folder(files(Kind.BF16)), weights="fp32") as backend:
        answer = greedy(backend, Conversation().user(picture(1), "What is it?"))
    assert answer.usage.image_tokens == IMAGE_TOKENS
    assert all(token.id < len(vocabulary.tokens) for token in answer.tokens)


def test_the_loader_takes_the_file_itself(files, original, vocabulary):
    heard = []
    model = load_model(files(Kind.BF16, tower=None), weights="fp32", progress=heard.append)
    assert model.name == "small"
    assert "takes no pictures" in model.knows
    assert any("Text only" in step.message for step in heard)
    assert_same(model.model, original, vocabulary)


# --- long positions ---


def unscaled(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "unscaled")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_scaling"] = None
    (folder / "config.json").write_text(json.dumps(config))
    return transformers_model(folder)


def test_positions_are_scaled_in_global_layers_as_in_the_original(
    files, small, original, vocabulary, tmp_path
):
    model = loaded(files(Kind.F32)).model
    assert_same(model, original, vocabulary, length=LONG)
    ids, _ = prompt(vocabulary, length=LONG)
    # A loader that drops the factor computes something else
    dropped = logits(unscaled(small, tmp_path), ids)
    difference = (dropped[-1] - logits(original, ids)[-1]).abs().max()
    assert difference > 0.01


def test_a_file_of_34_layers_that_does_not_say_so_is_scaled_too(tmp_path, vocabulary):
    """The 4B's number of layers and context: the factor of its release counts, and is mentioned."""
    layers = 34
    types = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(CACHE_VARIABLE)
        tiny = tiny_checkpoint(tmp_path / "tiny", layers=layers)
    checkpoint = cut_checkpoint(
        tiny, tmp_path / "small", vocabulary, max_position_embeddings=131_072, layer_types=types
    )
    path = write_text(tmp_path / "silent.gguf", checkpoint, vocabulary, scaling=False)
    write_mmproj(tmp_path / "mmproj.gguf", checkpoint)
    heard = []
    model = load_model(gguf_folder(path, progress=heard.append), weights="fp32").model
    assert any("8 in global layers" in step.message for step in heard)
    assert_same(model, transformers_model(checkpoint), vocabulary, length=LONG)


# --- the folder ---


def test_the_folder_reads_like_a_published_checkpoint(files, vocabulary):
    path = files(Kind.Q8_0)
    folder = gguf_folder(path)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"]
    assert config["mm_tokens_per_image"] == IMAGE_TOKENS
    assert config["image_token_index"] == len(vocabulary.tokens)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["top_k"]) == ([1, 106], 64)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 9  # embeddings, 6 layers, norm, tower
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    assert max(sizes) < sum(sizes) / 2


def test_transformers_reads_the_folder_too(files, original, vocabulary):
    model = Gemma3ForConditionalGeneration.from_pretrained(
        gguf_folder(files(Kind.BF16)), dtype=torch.float32, attn_implementation="eager"
    )
    assert_same(model, original, vocabulary, pictures=1)


def test_the_second_call_converts_nothing(files):
    path = files(Kind.BF16)
    folder = gguf_folder(path)
    times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    heard = []
    assert gguf_folder(path, progress=heard.append) == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == times
    assert heard == []


def test_a_changed_file_is_converted_anew(files, small, vocabulary):
    path = files(Kind.BF16)
    first = gguf_folder(path)
    write_text(path, small, vocabulary, kind=Kind.Q8_0)
    second = gguf_folder(path)
    os.utime(path, ns=(1, 1))
    assert len({first, second, gguf_folder(path)}) == 3


def test_a_base_model_stops_as_its_file_says(files):
    folder = gguf_folder(files(Kind.BF16, chat_template=False))
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [106]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, Sample(temperature=1.0, top_k=64, top_p=0.95)),
        ({"top_p": 0.9}, Sample(temperature=1.0, top_k=64, top_p=0.9)),
        ({"temp": 0.7, "top_k": -1, "top_p": 1.0}, Sample(temperature=0.7, top_k=0, top_p=1.0)),
        ({"temp": 0.0, "top_k": 40}, Greedy()),
    ],
)
def test_tokens_are_chosen_as_the_file_says_and_else_as_google_recommends(files, said, expected):
    keys = {f"general.sampling.{key}": value for key, value in said.items()}
    assert open_checkpoint(gguf_folder(files(tower=None, **keys))).sampling == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("top_p", 7.0, "top_p is 7.0; it must be above 0"),
        ("temp", float("nan"), "'general.sampling.temp' is no number"),
        ("top_k", "many", "'general.sampling.top_k' is no number"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused_before_anything_is_written(
    files, key, value, message, tmp_path, monkeypatch
):
    path = files(tower=None, **{f"general.sampling.{key}": value})
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(LoadError, match=message):
        gguf_folder(path)
    assert not (tmp_path / "cache").exists()


def test_names_of_files_cannot_leave_the_cache(files, tmp_path):
    strange = tmp_path / "..  $(x) \u202e名.gguf"
    shutil.copy(files(Kind.BF16, tower=None), strange)
    folder = gguf_folder(strange)
    assert folder.parent == Path(os.environ[CACHE_VARIABLE])
    assert folder.name.isascii()


# --- text only ---


def test_text_alone_loads_text_only_and_says_so(files, original, vocabulary):
    path = files(Kind.BF16, tower=None)
    for _ in range(2):  # when it is converted, and when it is found
        heard = []
        folder = gguf_folder(path, progress=heard.append)
        assert "Text only, no pictures" in heard[-1].message
    assert "no mmproj" in gguf_notes(folder)[0]
    model = load_model(folder, weights="fp32")
    assert type(model.model).__name__ == "Gemma3ForCausalLM"
    assert model.preprocessor is None
    assert_same(model.model, original, vocabulary, length=LONG)


def test_the_tower_of_another_size_is_left_aside_and_named(files, tiny, tmp_path):
    path = files(Kind.BF16, tower=None)
    other = other_width(tiny, tmp_path)
    shutil.copy(other, path.with_name("mmproj-12b.gguf"))
    assert (
        "'mmproj-12b.gguf' beside it belongs to a model of another size"
        in (gguf_notes(gguf_folder(path))[0])
    )


def test_the_tower_of_another_kind_of_model_is_left_aside(files, small, original, vocabulary):
    path = files(Kind.BF16)
    write_mmproj(path.with_name("qwen-mmproj.gguf"), small, projector="qwen2vl_merger")
    assert_same(loaded(path).model, original, vocabulary, pictures=1)


def test_a_damaged_tower_is_named_not_left_aside(files):
    path = files(Kind.BF16)
    tower = path.with_name("mmproj-small.gguf")
    tower.write_bytes(tower.read_bytes()[:-500])
    assert "'mmproj-small.gguf'" in refusal(path)


def other_width(tiny, tmp_path):
    from safetensors.torch import save_file

    folder = tmp_path / "wide"
    folder.mkdir()
    weights = load_file(tiny / "model.safetensors")
    key = "multi_modal_projector.mm_input_projection_weight"
    weights[key] = torch.cat([weights[key]] * 2, dim=1)
    save_file(weights, folder / "model.safetensors")
    shutil.copy(tiny / "config.json", folder)
    return write_mmproj(tmp_path / "wide.gguf", folder)


# --- which files ---


def refusal(path, **options):
    with pytest.raises(LoadError) as caught:
        gguf_folder(path, **options)
    message = str(caught.value)
    assert "/" not in message.replace("Q4_K_M", ""), "a path leaks"
    return message


def test_several_fitting_towers_are_named(files, small):
    path = files(Kind.BF16)
    second = write_mmproj(path.with_name("small-mmproj-F16.gguf"), small, kind=Kind.F16)
    message = refusal(path)
    assert "'mmproj-small.gguf'" in message and "'small-mmproj-F16.gguf'" in message
    assert "vision_config" in (gguf_folder(path, mmproj=second) / "config.json").read_text()


def test_the_tower_of_another_size_is_refused_when_named(files, tiny, tmp_path):
    assert "128" in refusal(files(Kind.BF16, tower=None), mmproj=other_width(tiny, tmp_path))


def test_mixed_up_files_are_told_apart(files):
    path = files(Kind.BF16)
    assert "(mmproj) only" in refusal(path.with_name("mmproj-small.gguf"))
    assert "expected an mmproj" in refusal(path, mmproj=path)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3n", "gemma4"])
def test_another_architecture_is_named(files, architecture):
    message = refusal(files(tower=None, architecture=architecture))
    assert message.startswith("'small.gguf'") and f"{architecture!r} model" in message


def test_missing_tensors_are_named_before_anything_is_written(files):
    path = files(keep=lambda name: name != "blk.3.ffn_up.weight")
    before = set(Path(os.environ[CACHE_VARIABLE]).glob("*"))
    assert "model.layers.3.mlp.up_proj.weight" in refusal(path)
    assert set(Path(os.environ[CACHE_VARIABLE]).glob("*")) == before


@pytest.mark.parametrize("length", [0, 10, 1000, -200])
def test_a_cut_file_is_refused(files, length):
    path = files(Kind.BF16)
    data = path.read_bytes()
    path.write_bytes(data[:length])
    assert "'small.gguf'" in refusal(path)


@pytest.mark.parametrize("which", ["small.gguf", "mmproj-small.gguf"])
def test_changed_headers_convert_or_are_refused(files, which):
    """Whatever a header says, nothing but a plain error comes of it, in under a second."""
    path = files(Kind.Q8_0)
    changed = path.with_name(which)
    content = changed.read_bytes()
    summary = check_gguf(changed, which)
    texts = summary.arrays.get("tokenizer.ggml.tokens")
    random = Random(0)
    refused = 0
    for _ in range(150):
        data = bytearray(content)
        for _ in range(random.randint(1, 3)):
            end = summary.data_start
            # Half of the changes before the vocabulary, which is most of the header
            at = random.randrange(texts.start if texts and random.random() < 0.5 else end)
            data[at] = random.choice([0, 1, 2, 9, 127, 128, 255, data[at] ^ 1])
        changed.write_bytes(data)
        start = process_time()
        try:
            gguf_folder(path)
        except LoadError as error:
            assert process_time() - start < 1
            assert str(path.parent) not in str(error) and len(str(error)) < 400
            refused += 1
    assert refused > 30


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert "'gone.gguf'" in refusal(tmp_path / "gone.gguf")


def split(path, small, vocabulary):
    """Write the model in two parts, as llama.cpp's gguf-split does: settings in the first."""
    folder = path.parent
    first = {"token_embd.weight", *(f"blk.{layer}." for layer in range(3))}
    in_first = lambda name: any(name.startswith(each) for each in first)  # noqa: E731
    one = folder / "big-00001-of-00002.gguf"
    two = folder / "big-00002-of-00002.gguf"
    write_text(one, small, vocabulary, keep=in_first)
    write_text(two, small, vocabulary, keep=lambda name: not in_first(name))
    return one, two


def test_a_model_in_parts_is_read_from_any_of_them(files, small, original, vocabulary):
    one, two = split(files(Kind.BF16), small, vocabulary)
    assert text_parts(two) == [one, two]
    assert gguf_folder(one) == gguf_folder(two)
    assert_same(loaded(two).model, original, vocabulary, pictures=1)


def test_missing_parts_are_named(files, small, vocabulary):
    one, two = split(files(Kind.BF16), small, vocabulary)
    one.unlink()
    assert "big-00001-of-00002.gguf" in refusal(two)
    for name in ("x-00003-of-00002.gguf", "x-00000-of-00002.gguf", "x-00001-of-00000.gguf"):
        assert "numbered" in refusal(one.with_name(name))


def test_what_is_a_gguf(files, tmp_path):
    path = files(Kind.BF16)
    assert is_gguf(path) and is_gguf(str(path)) and is_gguf("gone.GGUF")
    unnamed = shutil.copy(path, tmp_path / "sha256-abc")
    assert is_gguf(unnamed)
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "text").write_text("GGU")
    for other in (tmp_path, tmp_path / "folder.gguf", tmp_path / "text", "demo", "google/x"):
        assert not is_gguf(other)


@pytest.mark.slow
def test_the_released_vocabulary_gives_the_released_tokenizer(tiny, tmp_path, base_270m):
    """All 262,144 tokens, with pictures: what a 4B file holds, but for the size of its layers."""
    words = released_vocabulary()
    write_mmproj(tmp_path / "mmproj.gguf", tiny)
    path = write_text(tmp_path / "full.gguf", tiny, words)
    folder = gguf_folder(path)
    assert (folder / "tokenizer.json").read_text() == (base_270m / "tokenizer.json").read_text()
    conversation = Conversation().user(picture(1), "Which one is older, and why?")
    with load(folder, weights="fp32") as backend, load(tiny, weights="fp32") as plain:
        ours, theirs = (greedy(each, conversation) for each in (backend, plain))
    ids = [[token.id for token in answer.tokens] for answer in (ours, theirs)]
    assert ids[0] == ids[1]
