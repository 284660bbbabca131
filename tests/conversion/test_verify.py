"""`verify` takes what `convert` writes: every form next to its source, and one that is wrong."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import gemma3vl_app as gv
from gemma3vl_app import cli
from gemma3vl_app.conversion.converting import convert
from gemma3vl_app.errors import LoadError
from gemma3vl_app.faithfulness import reader
from gemma3vl_app.faithfulness.prompts import drawn_picture
from gemma3vl_app.loading.cache import CACHE_VARIABLE
from tests.loading.peft_adapters import KINDS, save_adapter

# Forms that round, with the most that they may cost a tiny random model; others are the same
ROUNDED = {"nf4": gv.Bounds(max_mean_kl=0.3), "q8_0": gv.Bounds(max_mean_kl=0.02)}


@pytest.fixture(autouse=True)
def short(tmp_path_factory, monkeypatch):
    """Few tokens of an answer, each of which costs a pass; and one cache for GGUF files."""
    monkeypatch.setattr(reader, "ANSWER_TOKENS", 2)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "verify-cache"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What is asked instead of the built-in prompts: one line, and one picture."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "questions.txt").write_text("Name three colours.\n", encoding="utf-8")
    (folder / "shown").mkdir()
    drawn_picture(3, 64, 64).rgb.save(folder / "shown" / "shapes.png")
    return folder


def verified(source, result, asked, *, pictures=False, **options):
    what = {"pictures": asked / "shown"} if pictures else {"prompts": asked / "questions.txt"}
    return gv.verify(source, result, **what, **options)


@pytest.mark.parametrize(
    ("to", "options", "pictures"),
    [
        ("hub", {}, False),
        ("transformers5", {}, True),
        ("nf4", {}, False),
        ("gguf", {"gguf_type": "bf16"}, True),
        ("gguf", {"gguf_type": "q8_0"}, False),
    ],
)
def test_what_is_written_answers_as_its_source(few_tokens, tmp_path, asked, to, options, pictures):
    result = convert(few_tokens, tmp_path / "out", to, **options)
    if to == "gguf":
        (result,) = (each for each in result.glob("*.gguf") if "mmproj" not in each.name)
    bounds = ROUNDED.get(options.get("gguf_type", to))
    found = verified(few_tokens, result, asked, pictures=pictures, bounds=bounds)
    assert found.within, found.exceeded
    if bounds is not None:  # it did round, so that the bound can fail
        assert found.total.max_kl > 1e-9


def test_a_merged_model_answers_as_the_hubs_form_of_itself(few_tokens, tmp_path, asked):
    adapter = save_adapter(few_tokens, tmp_path / "adapter", **KINDS["rslora"])
    merged = convert(few_tokens, tmp_path / "merged", "merged", adapter=adapter)
    assert verified(merged, convert(merged, tmp_path / "hub"), asked).within
    assert not verified(few_tokens, merged, asked).within


def test_the_command_ends_with_1_where_a_conversion_has_one_wrong_weight(
    few_tokens, tmp_path, asked, monkeypatch, capsys
):
    result = convert(few_tokens, tmp_path / "out")
    weights = load_file(result / "model.safetensors")
    name = "language_model.model.layers.3.mlp.up_proj.weight"
    weights[name] = (weights[name].float() * 1.05).to(torch.bfloat16)
    save_file(weights, result / "model.safetensors", metadata={"format": "pt"})
    line = ["gemma3vl", "verify", few_tokens, result, "--prompts", asked / "questions.txt"]
    monkeypatch.setattr("sys.argv", [str(word) for word in line])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    _, err = capsys.readouterr()
    assert ended.value.code == 1, err
    assert "Not the same: the largest difference of a logit is" in err


def test_a_megatron_checkpoint_is_refused_with_what_brings_it_back(few_tokens, tmp_path, asked):
    there = convert(few_tokens, tmp_path / "there", "megatron")
    nowhere = "no/such-model"  # the second is looked at before the first is loaded
    with pytest.raises(LoadError, match=r"Megatron-Core: convert it back first.* --to hub"):
        verified(nowhere, there, asked)
    (tmp_path / "trained").mkdir()  # as a training leaves it, without config.json
    shutil.copytree(there / "release", tmp_path / "trained" / "iter_0000120")
    for folder in (tmp_path / "trained", tmp_path / "trained" / "iter_0000120"):
        with pytest.raises(LoadError, match=r"Megatron-Core: convert it back first"):
            verified(nowhere, folder, asked)
    assert verified(few_tokens, convert(there, tmp_path / "back"), asked).within
