"""Train -> load as an adapter -> merge -> the hub's layout -> load: the same answers all along."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gemma3vl_app as gv
from gemma3vl_app.finetune.collate import Collator, answer_loss
from gemma3vl_app.finetune.methods import put_method
from gemma3vl_app.finetune.sources import read_jsonl
from gemma3vl_app.finetune.train import finetune
from gemma3vl_app.finetune.trained_files import whole_tensors, write_adapter
from gemma3vl_app.loading import load_model
from tests.finetune.conftest import but


def asked(pictures):
    return gv.Conversation().user(gv.Picture.open(pictures / "pink.png"), "What colour?")


def scores(backend, pictures, adapter=None):
    tokens = backend.score(asked(pictures), "It is pink, I think.", adapter=adapter)
    return [token.logprob for token in tokens]


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_trained_adapter_answers_the_same_loaded_and_merged(
    method, recipe, small, pictures, tokenizer, format
):
    loaded = load_model(small, weights="fp32", for_training=True)
    trained = but(recipe, method=method, train_vision_tower=True, max_steps=3)
    adapter = finetune(trained, model=loaded)
    merged = gv.convert(
        small, Path(recipe.out) / "merged", "merged", adapter=adapter, precision="fp32"
    )
    with gv.load(small, weights="fp32", adapters={"mine": adapter}) as backend:
        plain, with_adapter = scores(backend, pictures), scores(backend, pictures, "mine")
    with gv.load(merged, weights="fp32") as backend:
        after_merge = scores(backend, pictures)
    assert max(abs(a - b) for a, b in zip(plain, with_adapter, strict=True)) > 0.1
    assert after_merge == pytest.approx(with_adapter, abs=1e-4)
    # The very model that was trained, and the merged one, by transformers' own forward pass
    batch = Collator(tokenizer, format)(read_jsonl(Path(recipe.data)))
    loaded.model.eval()
    with torch.no_grad():
        as_trained = answer_loss(loaded.model, batch).item()
        as_merged = answer_loss(load_model(merged, weights="fp32").model, batch).item()
    assert as_merged == pytest.approx(as_trained, abs=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_is_written_as_peft_writes_it(method, recipe, small, tmp_path):
    model = put_method(load_model(small, weights="fp32").model, but(recipe, method=method))
    model.save_pretrained(tmp_path / "peft")
    (tmp_path / "ours").mkdir()
    write_adapter(tmp_path / "ours", model, dict(whole_tensors(model, only_trained=True)), "demo")
    ours, theirs = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "peft")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
