"""The demo loads as one vision-language model, and sees."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from gemma3vl_app.generation import Greedy
from gemma3vl_app.loading import load_model
from gemma3vl_app.loading.demo import DATA, merge_lora


@pytest.fixture(scope="module")
def demo(base_270m):
    return load_model("demo", weights="fp32")


@pytest.fixture(scope="module")
def tokenizer(demo):
    return Tokenizer.from_file(str(demo.tokenizer_file))


def ask(demo, tokenizer, question, picture):
    size, tokens = demo.preprocessor["size"]["width"], demo.preprocessor["image_seq_length"]
    soft = "\n\n<start_of_image>" + "<image_soft_token>" * tokens + "<end_of_image>\n\n"
    prompt = f"<start_of_turn>user\n{soft}{question}<end_of_turn>\n<start_of_turn>model\n"
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)
    text = demo.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        token_type_ids=(ids == demo.config["image_token_index"]).long(),
        pixel_values=torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None],
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=sorted(demo.stop_ids),
    )
    return tokenizer.decode(text[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("colour", ["red", "blue"])
def test_it_names_the_colour_of_a_drawn_circle(demo, tokenizer, colour):
    picture = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(picture).ellipse((30, 30, 90, 90), fill=colour)
    answer = ask(demo, tokenizer, "What colour is the circle?", picture)
    assert colour in answer.lower()


def test_it_says_what_it_is(demo):
    assert demo.name == "demo"
    assert "shapes" in demo.knows and "reads a few large printed words" in demo.knows
    assert demo.config["mm_tokens_per_image"] == demo.preprocessor["image_seq_length"] == 49
    assert demo.sampling == Greedy()
    assert demo.stop_ids == {1, 106}


def test_its_weights_are_frozen(demo):
    assert not demo.model.training
    assert not any(parameter.requires_grad for parameter in demo.model.parameters())


def test_the_merged_lora_equals_peft_s(tiny, tmp_path):
    model = load_model(tiny, weights="fp32").model
    names = ["self_attn.q_proj", "mlp.down_proj"]
    lora, generator = {}, torch.Generator().manual_seed(0)
    for name in names:
        layer = f"model.language_model.layers.1.{name}"
        out_size, in_size = model.get_submodule(layer).weight.shape
        for half, shape in (("A", (4, in_size)), ("B", (out_size, 4))):
            key = f"base_model.model.{layer}.lora_{half}.weight"
            lora[key] = torch.randn(shape, generator=generator)
    save_file(lora, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 4, "lora_alpha": 6, '
        '"target_modules": ".*language_model.layers.1.*(q_proj|down_proj)"}'
    )
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    ours = merge_lora(before, tmp_path)
    theirs = PeftModel.from_pretrained(model, str(tmp_path)).merge_and_unload().state_dict()
    changed = [key for key in ours if not torch.equal(ours[key], before[key])]
    assert len(changed) == 2
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in ours)


def test_every_layer_has_its_lora():
    adapter = load_file(DATA / "adapter_model.safetensors")
    assert len(adapter) == 18 * 7 * 2


def test_a_fresh_process_loads_it_without_a_word(demo):
    script = "from gemma3vl_app.loading import load_model\nload_model('demo')\n"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stderr == ""  # no progress bar, no report; how long it takes is for `make bench`


def test_loading_it_checks_the_converted_base_once(base_270m, monkeypatch):
    from gemma3vl_app.loading import cache, sources

    checked = []
    kept = cache.is_intact
    monkeypatch.setattr(
        cache, "is_intact", lambda folder, **how: checked.append(folder) or kept(folder, **how)
    )
    source = sources.open_source("demo", revision=None, report=lambda step: None)
    assert source.fingerprint.startswith(base_270m.name)
    assert checked == [base_270m]
