"""llama.cpp itself opens the files, and computes from them what transformers computes.

Its server, which the package `xllamacpp` holds, runs in this process and is asked over HTTP.
"""

import base64
import io
import json
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from PIL import Image
from tokenizers import Tokenizer
from transformers import Gemma3ForConditionalGeneration

from gemma3vl_app.conversion.converting import convert
from gemma3vl_app.testing import tiny_checkpoint
from tests.conversion.conftest import with_config
from tests.loading.gguf_files import as_stored, give_tokenizer, released_vocabulary

llama = pytest.importorskip("xllamacpp", reason="not installed: pip install -e '.[dev]'")

TOKENS, ALTERNATIVES = 4, 10  # of each answer; most likely ones of each token that are compared
IMAGE_TOKENS = 16
SYSTEM, QUESTION = "be brief", "how many are there in the red one?"
PROMPT = f"<start_of_turn>user\n{SYSTEM}\n\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n"
MATRICES = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}
MATRICES |= {"q4_0": Kind.Q4_0}
# How far log-probabilities may be apart. llama.cpp looks GELU up in fp16, and rounds what it
# multiplies matrices with as it stores the matrices: to bf16, or to 8 bits.
BOUNDS = {"f32": 0.01, "f16": 0.02, "bf16": 0.2, "q8_0": 0.6, "q4_0": 0.6}
DEEP_BOUND = 0.2  # of many layers in f32: rounding grows from layer to layer


def checkpoint_of(folder, layers=6, **text):
    """A tiny checkpoint with some hundred tokens, among them all letters, as in a real one.

    Letters that are no tokens are joined by llama.cpp and not by the `tokenizers` library.
    """
    released = released_vocabulary()
    letters = [id_ for id_, token in enumerate(released.tokens[520:], 520) if len(token) == 1]
    vocabulary = released.cut([id_ for id_ in letters if released.tokens[id_] <= "\u2581"])
    ids = {
        "boi_token_index": vocabulary.tokens.index("<start_of_image>"),
        "eoi_token_index": vocabulary.tokens.index("<end_of_image>"),
        "image_token_index": len(vocabulary.tokens),
    }
    kinds = ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(layers)]
    text = {"layer_types": kinds, "vocab_size": len(vocabulary.tokens) + 64, **text}
    checkpoint = with_config(tiny_checkpoint(folder, layers=layers, text=text), **ids)
    give_tokenizer(checkpoint, vocabulary)
    return checkpoint


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return checkpoint_of(tmp_path_factory.mktemp("small") / "small")


@pytest.fixture(scope="module")
def serve():
    """A function that lets llama.cpp serve a folder of GGUF files; returns an HTTP client."""
    servers = []

    def start(folder):
        options = llama.CommonParams()
        (options.model.path,) = (str(f) for f in folder.glob("*.gguf") if "mmproj" not in f.name)
        (options.mmproj.path,) = (str(f) for f in folder.glob("mmproj*.gguf"))
        options.mmproj_use_gpu, options.n_gpu_layers = False, 0
        options.n_ctx, options.n_parallel, options.warmup = 512, 1, False
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
        # Keys and values as transformers has them, which llama.cpp else rounds to fp16
        options.cache_type_k = options.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        options.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.verbosity = 0
        servers.append(llama.Server(options))
        return httpx.Client(base_url=servers[-1].listening_address, timeout=60, trust_env=False)

    yield start
    servers.clear()


@pytest.fixture(scope="module")
def served(small, serve, tmp_path_factory):
    """A function that gives a client for a type, written and opened once."""
    clients = {}

    def client(kind):
        if kind not in clients:
            target = tmp_path_factory.mktemp("served") / kind
            clients[kind] = serve(convert(small, target, "gguf", gguf_type=kind))
        return clients[kind]

    return client


def ask(client, prompt):
    """The most likely tokens after a prompt, and for each the log-probabilities of some by id."""
    wish = {"n_predict": TOKENS, "temperature": 0, "n_probs": ALTERNATIVES, "cache_prompt": False}
    answer = client.post("/completion", json={"prompt": prompt, "return_tokens": True, **wish})
    answer.raise_for_status()
    steps = answer.json()["completion_probabilities"]
    found = [{each["id"]: each["logprob"] for each in step["top_logprobs"]} for step in steps]
    return answer.json()["tokens"], found


def transformers_model(checkpoint, kind="f32"):
    """The checkpoint by transformers, in fp32, its matrices as the type stores them."""
    model = Gemma3ForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "language_model" in name:
                table = Kind.Q8_0 if kind == "q4_0" else MATRICES[kind]
                weight.copy_(as_stored(weight, table if "embed" in name else MATRICES[kind]))
    return model


@torch.inference_mode()
def log_probabilities(model, ids, tokens, **pictures):
    """What a model gives each of `tokens` after `ids` (n, V)."""
    ids = torch.tensor([[*ids, *tokens[:-1]]])
    types = (ids == model.config.image_token_id).long()
    logits = model(input_ids=ids, token_type_ids=types, **pictures).logits
    return logits[0, -len(tokens) :].log_softmax(-1)


def largest_difference(expected, found):
    return max(
        abs(float(expected[step, id_]) - logprob)
        for step, row in enumerate(found)
        for id_, logprob in row.items()
    )


def assert_same(expected, tokens, found, bound):
    """Same log-probabilities, and same tokens where the two most likely are further apart."""
    assert [len(row) for row in found] == [ALTERNATIVES] * TOKENS
    assert largest_difference(expected, found) < bound
    for row, token in zip(expected, tokens, strict=True):
        (first, second), order = row.topk(2)
        if float(first - second) > 2 * bound:
            assert token == int(order[0])


def long_prompt(tokens=90):
    """Ids past the window of 32, and so far that scaled positions differ from plain ones."""
    generator = torch.Generator().manual_seed(1)
    return [2, *torch.randint(300, 500, (tokens,), generator=generator).tolist()]


# --- the same numbers ---


@pytest.mark.parametrize("kind", MATRICES)
def test_each_type_gives_transformers_answers(small, served, kind):
    tokens, found = ask(served(kind), long_prompt())
    model = transformers_model(small, kind)
    expected = log_probabilities(model, long_prompt(), tokens)
    assert_same(expected, tokens, found, BOUNDS[kind])


@pytest.mark.parametrize("kind", MATRICES)
def test_a_picture_is_seen_as_by_transformers(small, served, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    client = served(kind)
    before, after = "<start_of_turn>user\nthe red\n\n", "\n\nhow many?<end_of_turn>\n"
    marker = client.get("/props").json()["media_marker"]
    prompt = {
        "prompt_string": before + marker + after,
        "multimodal_data": [base64.b64encode(file.getvalue()).decode()],
    }
    tokens, found = ask(client, prompt)
    tokenizer = Tokenizer.from_file(str(small / "tokenizer.json"))
    model = transformers_model(small, kind)
    image = [model.config.image_token_id] * IMAGE_TOKENS
    begin, end = (tokenizer.token_to_id(f"<{each}_of_image>") for each in ("start", "end"))
    rest = tokenizer.encode(after, add_special_tokens=False).ids
    ids = [*tokenizer.encode(before).ids, begin, *image, end, *rest]
    seen = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    expected = log_probabilities(model, ids, tokens, pixel_values=seen)
    assert_same(expected, tokens, found, BOUNDS[kind])
    # Another picture would show
    mirrored = log_probabilities(model, ids, tokens, pixel_values=seen.flip(-1))
    assert largest_difference(mirrored, found) > 3 * BOUNDS[kind]


# --- the released sizes, which llama.cpp tells apart by their layers ---


@pytest.mark.parametrize(
    ("layers", "text", "otherwise"),
    [
        (34, {}, {"rope_scaling": None}),
        # The 27B: queries scaled by width / heads, which is not the width of a head
        (62, {"head_dim": 32, "query_pre_attn_scalar": 16}, {"query_pre_attn_scalar": 32}),
    ],
)
def test_layers_of_a_released_size_are_computed_rightly(serve, tmp_path, layers, text, otherwise):
    checkpoint = checkpoint_of(tmp_path / "deep", layers, **text)
    client = serve(convert(checkpoint, tmp_path / "gguf", "gguf", gguf_type="f32"))
    tokens, found = ask(client, long_prompt())
    expected = log_probabilities(transformers_model(checkpoint), long_prompt(), tokens)
    assert_same(expected, tokens, found, DEEP_BOUND)
    # Other positions, or another scale, would show
    config = json.loads((checkpoint / "config.json").read_text())
    with_config(checkpoint, text_config=config["text_config"] | otherwise)
    wrong = log_probabilities(transformers_model(checkpoint), long_prompt(), tokens)
    assert largest_difference(wrong, found) > 3 * DEEP_BOUND


# --- what people type ---


def test_words_become_the_tokens_of_the_checkpoint(small, served):
    text = f"{PROMPT} \u00e9\u4e2d <b>  three   spaces\n\n\tand 1234 lines\n"
    wish = {"content": text, "add_special": True, "parse_special": True}
    found = served("q4_0").post("/tokenize", json=wish).json()["tokens"]
    assert found == Tokenizer.from_file(str(small / "tokenizer.json")).encode(text).ids


def test_a_chat_is_put_into_the_models_own_words(small, served):
    talk = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    wish = {"messages": talk, "max_tokens": TOKENS, "temperature": 0}
    wish |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
    answer = served("f32").post("/v1/chat/completions", json=wish).json()
    steps = answer["choices"][0]["logprobs"]["content"]
    tokens = [step["id"] for step in steps]
    found = [{each["id"]: each["logprob"] for each in step["top_logprobs"]} for step in steps]
    ids = Tokenizer.from_file(str(small / "tokenizer.json")).encode(PROMPT).ids
    assert answer["usage"]["prompt_tokens"] == len(ids)
    expected = log_probabilities(transformers_model(small), ids, tokens)
    assert_same(expected, tokens, found, BOUNDS["f32"])


@pytest.mark.parametrize("token", ["<end_of_turn>", "<eos>"])
def test_an_answer_ends_where_the_model_ends_it(small, served, token):
    id_ = Tokenizer.from_file(str(small / "tokenizer.json")).token_to_id(token)
    wish = {"prompt": PROMPT, "n_predict": TOKENS, "logit_bias": [[id_, 1000]]}
    answer = served("f32").post("/completion", json=wish).json()
    assert (answer["stop_type"], answer["content"]) == ("eos", "")


def test_the_checkpoints_sampling_is_the_servers_default(small, served):
    own = json.loads((small / "generation_config.json").read_text())
    default = served("f32").get("/props").json()["default_generation_settings"]["params"]
    assert (default["top_k"], default["temperature"]) == (own["top_k"], 1.0)
    assert default["top_p"] == pytest.approx(own["top_p"])


def test_the_page_says_what_is_allowed():
    page = Path(__file__).parents[2] / "docs" / "conversion.md"
    rows = re.findall(
        r"^\| `(\w+)` \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|$", page.read_text(), re.MULTILINE
    )
    assert {kind: float(bound) for kind, bound in rows} == BOUNDS
