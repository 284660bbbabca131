"""Models written as GGUF: read back by the `gguf` package and by our own loader."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from jinja2 import Environment
from safetensors.torch import load_file, save_file

from gemma3vl_app.conversion import gguf_files
from gemma3vl_app.conversion.converting import Bridge, convert
from gemma3vl_app.conversion.gguf_file import CHUNK_NUMBERS, F16, Entry, _chunks
from gemma3vl_app.conversion.gguf_mmproj import write_mmproj
from gemma3vl_app.conversion.gguf_tokenizer import CHAT_TEMPLATE, read_vocabulary
from gemma3vl_app.conversion.options import Options
from gemma3vl_app.conversion.shard_files import UNFINISHED
from gemma3vl_app.conversion.work_folder import SMALL_FILES_BYTES, work_folder_of
from gemma3vl_app.errors import ConversionError, LoadError
from gemma3vl_app.loading import load_model
from gemma3vl_app.loading.cache import CACHE_VARIABLE
from gemma3vl_app.loading.checkpoint import in_memory_name
from gemma3vl_app.loading.conversion import HeldTensor
from gemma3vl_app.loading.gguf_header import open_gguf
from gemma3vl_app.loading.gguf_vocabulary import read_tokenizer
from tests.loading.gguf_files import as_stored, released_vocabulary

MATRICES = {
    **{"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16},
    **{"q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0},
}
IMAGE_TOKENS = 16


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """One cache for the files of these tests, apart from the user's."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "gguf-cache"))


@pytest.fixture(scope="module")
def written(few_tokens, tmp_path_factory):
    """A function that gives the folder of a type, written once."""
    folders = {}

    def folder(kind):
        if kind not in folders:
            target = tmp_path_factory.mktemp("written") / kind
            folders[kind] = convert(few_tokens, target, "gguf", gguf_type=kind)
        return folders[kind]

    return folder


def files_of(folder):
    (text,) = (file for file in folder.glob("*.gguf") if "mmproj" not in file.name)
    (mmproj,) = folder.glob("mmproj*.gguf")
    return text, mmproj


def contents(path):
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@torch.inference_mode()
def logits(model, pictures=0):
    """Logits for a prompt longer than the window, with random pictures in it."""
    generator = torch.Generator().manual_seed(1)
    ids = [2, *torch.randint(300, 500, (60,), generator=generator).tolist()]
    for _ in range(pictures):
        ids += [520, *[model.config.image_token_id] * IMAGE_TOKENS, 521, 310]
    ids = torch.tensor([ids])
    pixels = torch.rand((pictures, 3, 64, 64), generator=generator) * 2 - 1
    if not pictures:
        return model(input_ids=ids).logits[0]
    types = (ids == model.config.image_token_id).long()
    return model(input_ids=ids, token_type_ids=types, pixel_values=pixels).logits[0]


# --- the same numbers ---


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("pictures", [0, 2])
def test_our_loader_gets_the_sources_very_logits(few_tokens, written, kind, pictures):
    text, _ = files_of(written(kind))
    ours, source = (load_model(each, weights="fp32").model for each in (text, few_tokens))
    # Equal but for the last bits of norms, stored as 1 + w
    assert torch.allclose(logits(ours, pictures), logits(source, pictures), atol=1e-4)


@pytest.mark.parametrize("kind", MATRICES)
def test_weights_are_the_sources_as_the_type_stores_them(few_tokens, written, kind):
    """Vectors, tower and projector are whole; matrices of the text are what ggml makes of them."""
    text, mmproj = files_of(written(kind))
    theirs = {}
    for file in (text, mmproj):
        for tensor in gguf.GGUFReader(file).tensors:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            theirs[tensor.name] = (tensor.tensor_type, torch.from_numpy(values.copy()))
    ours = load_model(text, weights="fp32").model.state_dict()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 6)
    for key, weight in load_file(few_tokens / "model.safetensors").items():
        is_text = key.startswith("language_model.")
        exact = weight.float()
        if is_text and weight.dim() == 2:
            stored_as = MATRICES[kind]
            if kind == "q4_0" and "embed_tokens" in key:
                stored_as = Kind.Q8_0
            name = names.get_name(key.removeprefix("language_model."), (".weight", ".bias"))
            assert theirs[name][0] == stored_as
            exact = as_stored(weight, stored_as).float()
        elif kind == "f16" and weight.dim() == 2:  # of the tower; the smallest numbers lose bits
            exact = as_stored(weight, Kind.F16).float()
        # A norm is stored as 1 + w in fp32: all of w but its last bits below 1e-7
        tolerance = 1e-7 if key.endswith("norm.weight") else 0
        assert torch.allclose(ours[in_memory_name(key)], exact, rtol=0, atol=tolerance), key
    assert {kind for kind, values in theirs.values() if values.dim() == 1} == {Kind.F32}
    assert theirs["mm.input_projection.weight"][0] == Kind.F32
    tower = {"f32": Kind.F32, "f16": Kind.F16}.get(kind, Kind.BF16)
    assert theirs["v.blk.0.attn_q.weight"][0] == tower


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantised_files_give_the_logits_of_their_own_numbers(few_tokens, written, kind):
    text, _ = files_of(written(kind))
    expected = load_model(few_tokens, weights="fp32").model
    with torch.no_grad():
        for name, weight in expected.named_parameters():
            if weight.dim() == 2 and "language_model" in name:
                stored_as = MATRICES[kind] if "embed" not in name else Kind.Q8_0
                weight.copy_(as_stored(weight, stored_as).float())
    ours = load_model(text, weights="fp32").model
    assert torch.allclose(logits(ours, 1), logits(expected, 1), atol=1e-4)


def test_a_checkpoint_read_from_q4_0_goes_back_to_the_same_numbers(few_tokens, tmp_path):
    """As Google's quantisation-aware releases: bf16 weights of d times q, no block at its edge."""
    generator = torch.Generator().manual_seed(9)
    weights = load_file(few_tokens / "model.safetensors")
    on_grid = [k for k in weights if "language" in k and k.endswith("proj.weight")]
    for key in on_grid:
        shape = weights[key].shape
        d = torch.rand(shape[0], shape[1] // 32, 1, generator=generator).to(torch.float16) / 16
        q = torch.randint(-7, 8, (*d.shape[:2], 32), generator=generator)
        weights[key] = (d.float() * q).reshape(shape).to(torch.bfloat16)
    source = shutil.copytree(few_tokens, tmp_path / "qat")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    text, _ = files_of(convert(source, tmp_path / "out", "gguf", gguf_type="q4_0"))
    ours = load_model(text, weights="bf16").model.state_dict()
    for key in on_grid:
        assert torch.equal(ours[in_memory_name(key)], weights[key]), key


# --- what llama.cpp reads ---


def test_the_text_file_says_what_llama_cpps_converter_says(written):
    found = contents(files_of(written("q8_0"))[0])
    expected = {
        "general.sampling.temp": 1.0,
        "general.sampling.top_k": 64,
        "general.sampling.top_p": pytest.approx(0.95),
        "general.sampling.min_p": 0.0,
        "general.architecture": "gemma3",
        "general.type": "model",
        "general.name": "small",
        "general.license": "gemma",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "gemma3.context_length": 8192,
        "gemma3.embedding_length": 64,
        "gemma3.block_count": 6,
        "gemma3.feed_forward_length": 128,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 2,
        "gemma3.attention.key_length": 16,
        "gemma3.attention.value_length": 16,
        "gemma3.attention.sliding_window": 32,
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.freq_base_swa": 1e4,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 106,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["gemma3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    rows = found["gemma3.vocab_size"]
    lists = (found[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    assert {len(each) for each in lists} == {rows}


def test_the_mmproj_says_what_llama_cpps_converter_says(written):
    found = contents(files_of(written("q4_0"))[1])
    expected = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.file_type": 32,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "gemma3",
        "clip.use_gelu": True,
        "clip.vision.image_size": 64,
        "clip.vision.patch_size": 8,
        "clip.vision.embedding_length": 48,
        "clip.vision.feed_forward_length": 96,
        "clip.vision.projection_dim": 64,
        "clip.vision.block_count": 2,
        "clip.vision.attention.head_count": 4,
        "clip.vision.image_mean": [0.5] * 3,
        "clip.vision.image_std": [0.5] * 3,
        "clip.vision.projector.scale_factor": 2,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_both_files_and_the_record_say_which_weights_they_were_made_of(few_tokens, written):
    """The hub's commit, or for a folder a digest of its files, which is the same anywhere."""
    folder = written("bf16")
    revision = Bridge.open(few_tokens).source.revision
    assert revision.startswith("files:")
    for file in files_of(folder):
        assert contents(file)["gemma3vl_app.source_revision"] == revision
    assert json.loads((folder / "conversion.json").read_text())["revision"] == revision


@pytest.mark.parametrize(
    "generation",
    [
        {"do_sample": True, "temperature": 0.7, "top_k": 10, "top_p": 0.9},
        {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 1.0},
        {"do_sample": False},
    ],
)
def test_the_checkpoints_own_settings_come_back_from_the_files(few_tokens, tmp_path, generation):
    source = shutil.copytree(few_tokens, tmp_path / "source")
    (source / "generation_config.json").write_text(json.dumps(generation))
    preprocessor = json.loads((source / "preprocessor_config.json").read_text())
    preprocessor |= {"image_mean": [0.25, 0.5, 0.75], "image_std": [0.125, 0.25, 0.5]}
    (source / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    text, _ = files_of(convert(source, tmp_path / "out", "gguf"))
    before, after = (Bridge.open(each).source.checkpoint for each in (source, text))
    assert after.sampling == before.sampling
    assert after.stop_ids == before.stop_ids
    kept = {key: value for key, value in preprocessor.items() if value is not None}
    assert after.preprocessor == {key: kept[key] for key in after.preprocessor}


def test_room_is_asked_for_as_much_as_is_written(few_tokens, written):
    source = Bridge.open(few_tokens).source
    for kind in MATRICES:
        files = files_of(written(kind))
        tensors = [each for file in files for each in gguf.GGUFReader(file).tensors]
        needed = gguf_files.needs_bytes(source, Options(gguf_type=kind))
        assert needed == sum(int(each.n_bytes) for each in tensors)
        around = sum(file.stat().st_size for file in files) - needed  # header and alignment
        assert 0 < around < SMALL_FILES_BYTES / 100


def test_tensors_have_the_gguf_packages_own_names(written):
    text, mmproj = files_of(written("bf16"))
    for file, architecture, layers in (
        (text, gguf.MODEL_ARCH.GEMMA3, 6),
        (mmproj, gguf.MODEL_ARCH.MMPROJ, 2),
    ):
        known = {gguf.TENSOR_NAMES[each] for each in gguf.MODEL_TENSORS[architecture]}
        known = {name.format(bid=layer) for name in known for layer in range(layers)}
        found = {each.name.rpartition(".")[0] for each in gguf.GGUFReader(file).tensors}
        assert found <= known


# --- the tokenizer ---


def test_the_released_tokenizer_becomes_the_vocabulary_that_google_ships(base_270m):
    released = released_vocabulary()
    ours = read_vocabulary(base_270m / "tokenizer.json", len(released.tokens))
    assert ours.tokens == released.tokens
    differing = [i for i, kind in enumerate(ours.kinds) if kind != released.kinds[i]]
    # In the text-only release these two are plain text; in those with vision they are not
    assert [ours.tokens[i] for i in differing] == ["<start_of_image>", "<end_of_image>"]
    # Only the order of scores counts; SentencePiece counts some pieces that the vocabulary lacks
    order = lambda scores: np.argsort(-np.array(scores), kind="stable").tolist()  # noqa: E731
    assert order(ours.scores) == order(released.scores)


def test_our_loader_reads_the_same_tokenizer_back(few_tokens, written):
    text, _ = files_of(written("bf16"))
    again = read_tokenizer(open_gguf([text]))
    # The image token has a row here, and is added in both
    assert again["model"]["vocab"].pop("<image_soft_token>") == 722
    assert again == json.loads((few_tokens / "tokenizer.json").read_text())


def test_rows_without_a_token_are_padding(base_270m, few_tokens):
    vocabulary = read_vocabulary(few_tokens / "tokenizer.json", 800)
    assert vocabulary.tokens[-1] == "[PAD799]"
    assert vocabulary.kinds[-1] == gguf.TokenType.UNUSED
    # The image token is behind the rows of a text-only model
    file = few_tokens / "tokenizer.json"
    words = len(json.loads(file.read_text())["model"]["vocab"])
    assert "<image_soft_token>" not in read_vocabulary(file, words).tokens
    assert read_vocabulary(file, words + 1).tokens[-1] == "<image_soft_token>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.update(type="Unigram"), "no BPE"),
        (lambda model: model["merges"].extend([["e", "r"], ["\u2581", "t"]]), "another order"),
        (lambda model: model.pop("merges"), "lacks what a tokenizer has"),
        (lambda model: model["vocab"].update(more=5000), "5001 tokens"),
    ],
)
def test_another_tokenizer_is_refused(few_tokens, tmp_path, change, message):
    tokenizer = json.loads((few_tokens / "tokenizer.json").read_text())
    change(tokenizer["model"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(LoadError, match=message):
        read_vocabulary(tmp_path / "tokenizer.json", 800)


def test_the_chat_template_renders_what_googles_renders():
    google = "tests/data/gemma3_chat_template.jinja"
    with open(google, encoding="utf-8") as file:
        templates = [Environment().from_string(text) for text in (file.read(), CHAT_TEMPLATE)]
    parts = [{"type": "image"}, {"type": "text", "text": " What is it? "}]
    talks = [
        [{"role": "user", "content": " Hi "}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}],
        [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": " Hello\n"},
            {"role": "user", "content": parts},
        ],
    ]
    for messages in talks:
        for goes_on in (True, False):
            theirs, ours = (
                each.render(messages=messages, bos_token="<bos>", add_generation_prompt=goes_on)
                for each in templates
            )
            assert ours == theirs


def test_a_template_of_the_checkpoints_own_is_kept(few_tokens, tmp_path):
    source = shutil.copytree(few_tokens, tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ 'mine' }}")
    text, _ = files_of(convert(source, tmp_path / "out", "gguf"))
    assert contents(text)["tokenizer.chat_template"] == "{{ 'mine' }}"


# --- files ---


def test_a_text_only_model_gets_no_mmproj(few_tokens, written, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(files_of(written("bf16"))[0], alone / "text.gguf")
    again = convert(alone / "text.gguf", tmp_path / "again", "gguf")
    assert [file.name for file in again.glob("*.gguf")] == ["text-BF16.gguf"]
    first, second = (load_model(each, weights="fp32").model for each in
                     (alone / "text.gguf", again / "text-BF16.gguf"))  # fmt: skip
    assert torch.equal(logits(first), logits(second))


def test_a_stopped_conversion_leaves_no_file_and_goes_on(few_tokens, tmp_path):
    class Stopped(Exception):
        pass

    def stop(step):
        if "mmproj" in step.message:
            raise Stopped

    target = tmp_path / "out"
    with pytest.raises(Stopped):
        convert(few_tokens, target, "gguf", progress=stop)
    assert not target.exists()
    work = next(each for each in tmp_path.iterdir() if each.is_dir())
    (text,) = work.glob("*.gguf")
    before = text.stat().st_ino, text.stat().st_mtime_ns
    convert(few_tokens, target, "gguf")
    text, mmproj = files_of(target)
    assert (text.stat().st_ino, text.stat().st_mtime_ns) == before
    assert gguf.GGUFReader(mmproj).tensors
    assert not [*target.glob("*unfinished*")]


def test_a_killed_conversion_goes_on_within_the_file(few_tokens, written, tmp_path):
    """What is finished there is not written again: a mark in its first tensor is still there."""
    target = tmp_path / "out"
    arguments = [str(few_tokens), str(target), "0.6"]
    command = [sys.executable, "-m", "tests.conversion.interrupted_gguf", *arguments]
    done = subprocess.run(command, timeout=300, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    # 1) Half a file
    (half,) = work_folder_of(target).glob("*.gguf*")
    assert half.name.endswith(UNFINISHED)
    left = half.stat().st_size
    undisturbed = [file.read_bytes() for file in files_of(written("bf16"))]
    whole = len(undisturbed[0])
    assert 0.3 * whole < left < whole
    # 2) A mark in it
    reader = gguf.GGUFReader(files_of(written("bf16"))[0])
    first = int(reader.tensors[0].data_offset)
    with half.open("r+b") as file:
        file.seek(first)
        file.write(bytes([undisturbed[0][first] ^ 0xFF]))
    # 3) The rest of it
    steps = []
    convert(few_tokens, target, "gguf", progress=steps.append)
    text, mmproj = (file.read_bytes() for file in files_of(target))
    assert text[first] == undisturbed[0][first] ^ 0xFF
    marked = bytearray(undisturbed[0])
    marked[first] ^= 0xFF
    assert (text, mmproj) == (bytes(marked), undisturbed[1])
    assert [step for step in steps if "tensors of small-BF16.gguf are there" in step.message]


@pytest.mark.parametrize("shorter_by", [0, 1, 5_000, 40_000])
def test_wherever_a_file_was_cut_it_becomes_the_same(few_tokens, written, tmp_path, shorter_by):
    source = Bridge.open(few_tokens).source
    expected = files_of(written("f16"))[1].read_bytes()
    path = tmp_path / "mmproj.gguf"
    half = path.with_name(path.name + UNFINISHED)
    half.write_bytes(expected[: len(expected) - shorter_by])
    write_mmproj(path, source, F16, lambda step: None)
    assert path.read_bytes() == expected
    assert not half.exists()


def test_half_a_file_of_another_header_is_written_anew(few_tokens, written, tmp_path):
    source = Bridge.open(few_tokens).source
    files = [files_of(written(kind))[1].read_bytes() for kind in ("f32", "f16")]
    path = tmp_path / "mmproj.gguf"
    path.with_name(path.name + UNFINISHED).write_bytes(files[0])
    write_mmproj(path, source, F16, lambda step: None)
    assert path.read_bytes() == files[1]


def test_a_large_matrix_is_written_by_groups_of_rows():
    wide = torch.zeros(1, dtype=torch.bfloat16).expand(8 * CHUNK_NUMBERS // 512, 512)
    sizes = [len(each) for each in _chunks(Entry("table", HeldTensor(wide), Kind.Q8_0))]
    assert len(sizes) == 8
    assert sum(sizes) == Entry("table", HeldTensor(wide), Kind.Q8_0).nbytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention"] * 6}, "global layers elsewhere"),
        ({"query_pre_attn_scalar": 99}, "scale of its queries"),
        ({"final_logit_softcapping": 30.0}, "capped logits"),
    ],
)
def test_what_llama_cpp_cannot_be_told_is_refused(few_tokens, tmp_path, change, message):
    source = shutil.copytree(few_tokens, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["text_config"] |= change
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=message):
        convert(source, tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def test_an_unknown_type_is_refused_by_name(few_tokens, tmp_path):
    with pytest.raises(ConversionError, match=r"no GGUF type 'q5_9'. Known are f32, f16"):
        convert(few_tokens, tmp_path / "out", "gguf", gguf_type="q5_9")
