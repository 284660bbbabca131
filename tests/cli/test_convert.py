"""`gemma3vl convert`: with or without a subcommand's name, stopped and gone on with."""

import pytest

import gemma3vl_app.conversion.converting
from gemma3vl_app.generation import Progress


@pytest.fixture
def asked(monkeypatch):
    """What the program asks to be converted, and nothing is."""
    seen = []

    def convert(source, target, progress, **options):
        progress(Progress("detect", 1, 1, "models", f"{source} is [a folder]\x1b[2J."))
        progress(Progress("convert", 1, 2, "bytes", "Writing"))
        seen.append((source, str(target), options))
        return target

    monkeypatch.setattr(gemma3vl_app.conversion.converting, "convert", convert)
    return seen


@pytest.mark.parametrize("begin", [["convert"], ["convert", "from"]])
@pytest.mark.parametrize("options_first", [True, False])
def test_a_conversion_needs_no_subcommand(begin, options_first, run, asked):
    options = ["--to", "transformers5", "--shard-size", "1GB", "--check", "--precision", "fp32"]
    operands = ["a/model", "out"]
    words = [*options, *operands] if options_first else [*operands, *options]
    code, out, err = run(*begin, *words)
    assert (code, out) == (0, "out\n")
    assert err == "a/model is [a folder]\N{REPLACEMENT CHARACTER}[2J.\n"
    assert asked == [
        (
            "a/model",
            "out",
            {
                **{"to": "transformers5", "adapter": None, "precision": "fp32"},
                **{"shard_bytes": 10**9, "gguf_type": "bf16", "check": True, "revision": None},
            },
        )
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "b", "--to", "hubb"], "Did you mean 'hub'?"),
        (["a", "b", "--to", "merged"], "Name the adapter's folder with --adapter FOLDER"),
        (["a", "b", "--to", "nf4", "--check"], "gemma3vl verify"),
        (["a", "b", "--precision", "fp16"], "Known are stored, bf16, fp32"),
        (["a", "b", "--to", "gguf", "--gguf-type", "q5_9"], "Known are f32, f16"),
        (["a", "b", "--shard-size", "much"], "no size of memory"),
        (["a", "b", "--to", "gguf", "--shard-size", "2GiB"], "so --shard-size has no meaning"),
        (["a"], "TARGET"),
        (["a", "b", "--tto", "hub"], "--to"),
        (["merge", "a"], "--base"),
    ],
)
def test_a_wrong_wish_is_one_line_and_converts_nothing(words, said, run, asked):
    code, out, err = run("convert", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not asked


def test_what_is_not_said_of_shards_is_left_to_the_form(run, asked):
    assert run("convert", "a", "b", "--to", "gguf")[0] == 0
    assert asked[0][2]["shard_bytes"] is None


def test_ctrl_c_says_how_to_go_on(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gemma3vl_app.conversion.converting, "convert", interrupted)
    code, out, err = run("convert", "a", "b")
    assert (code, out) == (130, "")
    assert err == "Stopped. What is written is kept: the same command goes on with it.\n"


def test_the_help_is_that_of_a_conversion_and_names_the_other_command(run):
    code, out, _ = run("convert", "--help")
    assert code == 0
    assert "--shard-size" in out
    assert "gemma3vl convert merge" in " ".join(out.split())
