"""Two checkpoints are compared: equal ones are equal, and a wrong tensor is found."""

import gc
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from gemma3vl_app.errors import LoadError, VerificationError
from gemma3vl_app.faithfulness import reader, record, two_models, verify
from gemma3vl_app.faithfulness.bounds import Bounds
from gemma3vl_app.faithfulness.measuring import compare_logits
from gemma3vl_app.faithfulness.two_models import common_columns
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.testing import tiny_checkpoint
from tests.faithfulness.conftest import Watched, louder

IN_LAYER_3 = "language_model.model.layers.3.mlp.up_proj.weight"
PROJECTOR = "multi_modal_projector.mm_input_projection_weight"


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched()


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """Few tokens of the reference's answer: each costs a pass."""
    monkeypatch.setattr(reader, "ANSWER_TOKENS", 3)


@pytest.fixture(scope="module")
def equal(tiny, tmp_path_factory, watched):
    """A checkpoint and its copy in another layout, asked with the built-in prompts."""
    copy = tmp_path_factory.mktemp("copies") / "tiny"
    tiny_checkpoint(copy, layout="transformers5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "load_model", watched.load_model)
        patch.setattr(reader, "ANSWER_TOKENS", 4)
        patch.setattr(reader, "MOST_POSITIONS", 20)  # a row of logits takes 1 MB
        return verify(tiny, copy, deep=True)


def test_a_copy_in_another_layout_is_the_same_to_the_last_bit(equal):
    assert equal.within and equal.exceeded == ()
    assert equal.begins == "nowhere"
    assert (equal.total.max_difference, equal.total.max_kl, equal.total.top1) == (0, 0, 1)
    assert equal.total.worst is None
    assert equal.deep is not None
    assert (equal.deep.first, equal.deep.weights) == ("", ())
    assert {each.error for each in equal.deep.layers} == {0.0}


def test_the_built_in_prompts_cover_pictures_crops_turns_and_the_window(equal):
    assert {each.pictures for each in equal.prompts} >= {0, 1, 2, 3}  # 3: a picture and two crops
    assert {each.crops for each in equal.prompts} == {"off", "on"}
    window = 32  # of the tiny checkpoint
    assert equal.prompts[-1].tokens > 3 * window
    assert all(each.agreement.positions > 16 for each in equal.prompts)


def test_every_layer_of_tower_and_language_model_is_looked_at_in_their_order(equal):
    names = [each.name for each in equal.deep.layers]
    assert names[:2] == [f"model.vision_tower.encoder.layers.{number}" for number in range(2)]
    assert names.index("model.multi_modal_projector") < names.index(
        "model.language_model.embed_tokens"
    )
    assert names[-7:-1] == [f"model.language_model.layers.{number}" for number in range(6)]


def test_a_changed_tensor_in_layer_3_is_found_and_named(tiny, copied, shown):
    found = verify(tiny, copied(louder(IN_LAYER_3)), pictures=shown, deep=True)
    assert not found.within
    assert found.begins == "language model"
    assert all(each.features_error == 0 for each in found.prompts)
    assert [(each.crops, each.pictures) for each in found.prompts] == [("off", 1), ("on", 3)]
    assert found.deep.first == "model.language_model.layers.3"
    (weight,) = found.deep.weights
    assert weight.name == "model.language_model.layers.3.mlp.up_proj.weight"
    assert weight.error == pytest.approx(0.05, rel=0.01)
    over = found.exceeded[0]
    assert "over 0.0001" in over and "times as much" in over
    worst = found.total.worst
    assert worst.prompt in {each.name for each in found.prompts}
    assert 0 <= worst.position < max(each.tokens for each in found.prompts)


def transposed(weights):
    """Store the projector as its transpose would lie in memory: the shape alone is right."""
    weights[PROJECTOR] = weights[PROJECTOR].T.contiguous().reshape(weights[PROJECTOR].shape)


def test_a_transposed_projector_is_told_from_a_wrong_language_weight(tiny, copied, shown):
    found = verify(tiny, copied(transposed), pictures=shown, deep=True)
    assert found.begins == "picture features"
    assert found.deep.first == "model.multi_modal_projector"
    assert all(each.features_error > 0.1 for each in found.prompts)


def test_nf4_is_within_or_over_the_bounds_that_are_given(tiny, questions):
    wide, tight = Bounds(max_mean_kl=2.0, max_kl=5.0), Bounds(max_kl=1e-6, min_top1=0.99)
    found = verify(tiny, tiny, weights_b="nf4", prompts=questions, bounds=wide)
    assert found.within
    assert (found.a.weights, found.b.weights) == ("fp32", "nf4")
    assert found.total.mean_kl > 0.01  # so that the tight bounds can fail
    over = tight.exceeded(found.total)
    assert [line.split(" is ")[0] for line in over] == [
        "the largest KL divergence",
        "top-1 agreement",
    ]


def test_the_first_model_is_gone_before_the_second_is_loaded(equal, watched):
    gc.collect()
    assert watched.alive == [False, False]
    assert [model() for model in watched.models] == [None, None]


def test_what_was_written_aside_is_deleted_even_where_the_second_model_fails(
    tiny, tmp_path, monkeypatch, questions
):
    monkeypatch.setattr(record.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(LoadError):
        verify(tiny, tmp_path / "nothing", prompts=questions)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_it_is_written_to(tiny, monkeypatch, questions):
    usage = record.shutil.disk_usage("/")
    monkeypatch.setattr(record.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(VerificationError, match="TMPDIR"):
        verify(tiny, tiny, prompts=questions)


WORDS = {"<bos>": 0, "red": 1, "blue": 2, "green": 3}


def vocabulary(words: dict[str, int], rows: int, *, image_tokens: int = 0):
    """A vocabulary of a few words, with so many rows of logits."""
    tokenizer = TextTokenizer(Tokenizer(WordLevel(words, unk_token="red")))
    turns = {"bos": 0, "start_of_turn": 0, "end_of_turn": 0, "stop_ids": frozenset({0})}
    return tokenizer, PromptFormat(**turns, soft=4, image_tokens=image_tokens), rows


def test_rows_that_stand_for_no_token_may_be_missing():
    columns, (note,) = common_columns(vocabulary(WORDS, 64), vocabulary(WORDS, 4))
    assert columns == 4
    assert "60 more rows" in note
    with_placeholder = {**WORDS, "<image_soft_token>": 4}
    assert common_columns(vocabulary(WORDS, 4), vocabulary(with_placeholder, 64))[0] == 4
    with pytest.raises(VerificationError, match=r"different sizes, 3 and 64 .* 1 of the tokens"):
        common_columns(vocabulary(WORDS, 3), vocabulary(WORDS, 64))


def test_a_layer_that_only_one_of_two_models_has_is_refused():
    def reading(*names: str) -> SimpleNamespace:
        return SimpleNamespace(layers=dict.fromkeys(names, torch.zeros(1, 2)), features={})

    for one, other in ((("a",), ("a", "b")), (("a", "b"), ("a",))):
        with pytest.raises(VerificationError, match=r"built differently \(b\)"):
            two_models._add_layers({}, reading(*one), reading(*other))


def test_tokenizers_that_differ_are_refused_in_words():
    other = {**WORDS, "red": 2, "blue": 1}
    with pytest.raises(VerificationError, match="tokenizers differ"):
        common_columns(vocabulary(WORDS, 64), vocabulary(other, 64))


def test_a_model_that_sees_is_not_compared_with_one_that_does_not():
    with pytest.raises(VerificationError, match="mmproj"):
        common_columns(vocabulary(WORDS, 64), vocabulary(WORDS, 64, image_tokens=16))


@pytest.mark.parametrize("source", ["http://127.0.0.1:9/v1"])
def test_a_server_s_model_is_refused(tiny, source):
    with pytest.raises(VerificationError, match="server"):
        verify(tiny, source)


def test_what_is_wrong_with_prompts_comes_up_before_a_model_is_loaded(tmp_path):
    with pytest.raises(VerificationError, match=r"absent\.txt"):
        verify("no/such-model", "no/such-model", prompts=tmp_path / "absent.txt")


def test_a_prompt_that_is_too_long_for_one_pass_is_refused(tiny, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("word " * 9000, encoding="utf-8")
    with pytest.raises(VerificationError, match=r"9,0\d\d tokens; at most 8,192"):
        verify(tiny, tiny, prompts=long)


def test_results_are_json(equal):
    found = json.loads(json.dumps(equal.to_dict()))
    assert found["within"] is True
    assert found["total"]["top1"] == 1
    assert found["prompts"][0]["agreement"]["top1"] == 1
    assert Path(found["a"]["source"]).is_dir()


def test_values_are_compared_where_nothing_is_a_number(tiny):
    logits = torch.zeros(2, 5)
    logits[:, 1] = 1
    wrong = torch.full((2, 5), float("nan"))
    rows = compare_logits(logits, wrong)
    assert rows.kl == rows.differences == [float("inf")] * 2
