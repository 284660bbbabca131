import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Gemma3ForConditionalGeneration

from gemma3vl_app.finetune.demo_language import Leg, Reader, measured, train
from gemma3vl_app.finetune.demo_talks import (
    IGNORED,
    Pool,
    PoolDrawing,
    PoolStage,
    Speech,
    Talks,
    Topics,
    spelled,
)
from gemma3vl_app.finetune.tower_pictures import NOTHING, labels_of
from gemma3vl_app.messages import Conversation
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.scenes.fonts import CHARACTERS
from gemma3vl_app.scenes.printed import random_print
from gemma3vl_app.scenes.scene import SHAPES, random_scene
from gemma3vl_app.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("demo") / "tiny", window=512)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return TextTokenizer.from_file(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def format(folder, tokenizer):
    return PromptFormat.from_config(
        json.loads((folder / "config.json").read_text()),
        json.loads((folder / "preprocessor_config.json").read_text()),
        tokenizer,
    )


@pytest.fixture
def reader(folder, format):
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    return Reader(model, format.image_tokens)


@pytest.fixture(scope="module")
def talks(tokenizer, format):
    """Talks about 20 scenes."""
    rng = random.Random(3)
    return Talks([random_scene(rng) for _ in range(20)], tokenizer, format)


@pytest.fixture(scope="module")
def pool(folder, format, talks):
    """The same scenes, whose cells are random numbers, and some of the talks."""
    width = json.loads((folder / "config.json").read_text())["vision_config"]["hidden_size"]
    cells = torch.randn(20, format.image_tokens, width, generator=torch.manual_seed(1))
    side = int(format.image_tokens**0.5)
    labels = np.stack([labels_of(scene, side) for scene in talks.shown])
    characters = np.full((*labels.shape[:2], 6), NOTHING, dtype=np.int8)
    made = tuple(talks.talk(random.Random(seed)) for seed in range(100))
    return Pool(cells, labels, characters, made)


def test_a_talk_is_the_prompt_of_its_turns_and_labels_are_its_answers(talks, tokenizer, format):
    seen = set()
    for seed in range(60):
        talk = talks.talk(random.Random(seed))
        for kind, first, last in talk.kinds:
            seen.add(kind)
            assert talk.ids[last - 1] == format.end_of_turn
            assert (talk.labels[first:last] == talk.ids[first:last]).all()
            before = tokenizer.decode(talk.ids[:first].tolist())
            assert before.endswith("model\n")
        learned = sum(last - first for _, first, last in talk.kinds)
        assert (talk.labels != IGNORED).sum() == learned
        for start, _ in talk.pictures:
            assert (talk.ids[start : start + format.image_tokens] == format.soft).all()
            assert talk.ids[start - 1] == format.boi
    assert {"describe", "relation", "compare", "comparison", "itself"} <= seen


def test_the_first_turn_is_what_the_model_is_asked_later(talks, tokenizer, format):
    talk = next(t for t in map(talks.talk, map(random.Random, range(99))) if not t.pictures)
    text = tokenizer.decode(talk.ids.tolist())
    question = text.split("user\n")[1].split("\nmodel")[0].strip()
    prompt = prepare(Conversation().user(question), tokenizer, format)
    assert (talk.ids[: len(prompt.ids)] == prompt.ids).all()


@pytest.mark.parametrize("padded_to", [1, 64])
def test_what_is_trained_on_is_what_the_reference_computes(talks, pool, reader, padded_to):
    chosen = [talks.talk(random.Random(seed)) for seed in (1, 2, 3, 40)]
    assert any(len(talk.pictures) > 1 for talk in chosen)
    with torch.no_grad():
        hidden, wanted = reader.hidden(chosen, pool, padded_to)
        logits = reader.logits(hidden, torch.arange(len(reader.embedding.weight)))
        expected = [_reference(reader, talk, pool) for talk in chosen]
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-4, rtol=1e-4)
    labels = np.concatenate([talk.labels[talk.labels != IGNORED] for talk in chosen])
    assert wanted.tolist() == labels.tolist()


def _reference(reader, talk, pool):
    """Return transformers' logits for the answers' tokens of one talk."""
    weight = reader.projector.mm_input_projection_weight
    ids = torch.from_numpy(talk.ids)
    types = torch.zeros_like(ids)
    vectors = reader.embedding(ids.clamp(max=len(reader.embedding.weight) - 1))
    for start, scene in talk.pictures:
        cells = pool.cells[scene]
        vectors[start : start + len(cells)] = cells @ weight
        types[start : start + len(cells)] = 1
    output = reader.peft.base_model.model(
        inputs_embeds=vectors[None],
        token_type_ids=types[None],
        attention_mask=torch.ones_like(ids)[None],
    )
    return output.logits[0, :-1][torch.from_numpy(talk.labels[1:] != IGNORED)]


def test_the_projector_begins_with_the_words_for_what_there_is(pool, reader, tokenizer):
    codes = torch.randn(len(SHAPES), pool.cells.shape[-1], generator=torch.manual_seed(2))
    cells = torch.zeros_like(pool.cells)
    labels = torch.from_numpy(pool.labels)
    there = labels[..., 0] != NOTHING
    shapes = labels[there][:, 0].long()
    cells[there] = codes[shapes]  # a tower that sees shapes, and nothing else
    reader.start_projector(replace(pool, cells=cells), tokenizer)
    words = torch.stack(
        [reader.embedding(torch.tensor(tokenizer.encode(f" {name}"))).mean(0) for name in SHAPES]
    )
    with torch.no_grad():
        soft = codes @ reader.projector.mm_input_projection_weight  # (shapes, D)
        soft = soft - soft.mean(0)  # colours and sizes are the same for all, on the whole
        nearest = (soft @ (words - words.mean(0)).T).argmax(-1)
    seen = shapes.unique()
    assert (nearest[seen] == seen).float().mean() > 0.8


def test_a_token_for_characters_begins_as_their_sum(pool, reader, tokenizer):
    width = pool.cells.shape[-1]
    codes = torch.randn(len(CHARACTERS), width, generator=torch.manual_seed(2))
    chosen = np.random.default_rng(0).integers(0, 20, pool.characters.shape[:2])  # small letters
    characters = pool.characters.copy()
    characters[..., 0] = chosen
    labels = np.full_like(pool.labels, NOTHING)
    cells = codes[torch.from_numpy(chosen)]  # a tower that reads, and sees nothing else
    shown = replace(pool, cells=cells, labels=labels, characters=characters)
    reader.start_projector(shown, tokenizer)
    with torch.no_grad():
        soft = codes[:20] @ reader.projector.mm_input_projection_weight
        words = torch.stack(
            [reader.embedding(torch.tensor(tokenizer.encode(c))).mean(0) for c in CHARACTERS[:20]]
        )
        nearest = ((soft - soft.mean(0)) @ (words - words.mean(0)).T).argmax(-1)
    assert (nearest == torch.arange(20)).float().mean() > 0.8


def test_training_goes_on_where_it_was_ended_with_the_very_same_losses(
    pool, folder, format, tmp_path, caplog
):
    leg = Leg("leg", steps=4, sequences=2, learning_rate=1e-3, tested=2)

    def run(out, minutes):
        model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        torch.manual_seed(0)
        reader = Reader(model, format.image_tokens)
        train(reader, pool, pool, leg, tmp_path / out, minutes=minutes)
        return {name: p.detach().clone() for name, p in reader.trained().items()}

    whole = run("whole", 60)
    run("parts", 0)  # ends after each step
    run("parts", 0)
    parts = run("parts", 60)
    for name, value in parts.items():
        torch.testing.assert_close(value, whole[name], atol=1e-6, rtol=1e-5)


def test_learning_makes_answers_likelier_in_the_whole_vocabulary(talks, pool, reader, tmp_path):
    fresh = [talks.talk(random.Random(seed)) for seed in range(900, 904)]

    def loss():
        with torch.no_grad():
            hidden, wanted = reader.hidden(fresh, pool)
            logits = reader.logits(hidden, torch.arange(len(reader.embedding.weight)))
            return torch.nn.functional.cross_entropy(logits, wanted).item()

    before = loss()
    train(
        reader,
        pool,
        pool,
        Leg("leg", steps=25, sequences=2, learning_rate=1e-2, tested=2),
        tmp_path,
        minutes=9,
    )
    assert loss() < 0.9 * before
    assert all(
        0 <= share <= 1 for share in measured(reader, pool, Leg("leg", 1, tested=4)).values()
    )


def test_pictures_to_be_compared_in_words_are_labelled_as_the_task_labels_them(talks, tokenizer):
    chosen = (talks.talk(random.Random(seed)) for seed in range(400))
    talk = next(t for t in chosen if "comparison" in {kind for kind, _, _ in t.kinds})
    for number, (first, _) in enumerate(talk.pictures, start=1):
        before = tokenizer.decode(talk.ids[:first].tolist())
        assert f"Picture {number}:" in before[-60:]


def test_prints_are_asked_about_beside_scenes(talks, tokenizer, format, needs_fonts):
    rng = random.Random(5)
    shown = (*talks.shown[:3], *(random_print(rng) for _ in range(17)))
    mixed = Talks(shown, tokenizer, format)
    made = [mixed.talk(random.Random(seed)) for seed in range(80)]
    kinds = {kind for talk in made for kind, _, _ in talk.kinds}
    assert {"read", "text_colour", "describe", "compare"} <= kinds
    compared = [talk for talk in made if "compare" in {kind for kind, _, _ in talk.kinds}]
    assert all(number < 3 for talk in compared for _, number in talk.pictures)  # scenes only


def test_topics_say_what_is_talked_about(talks, tokenizer, format):
    topics = Topics(0.0, 1.0, 0.0, turns=3, shares={"yes_or_no": 1, "count_some": 1})
    asked = Talks(talks.shown, tokenizer, format, topics)
    for seed in range(40):
        talk = asked.talk(random.Random(seed))
        assert len(talk.pictures) == 1
        assert {kind for kind, _, _ in talk.kinds} <= {"relation", "count", "itself"}


def test_what_is_printed_is_answered_letter_by_letter(talks, tokenizer, format, needs_fonts):
    rng = random.Random(8)
    shown = [random_print(rng) for _ in range(12)]
    about = Talks(shown, tokenizer, format, Topics(0.0, 1.0, 0.0, text_turns=3))
    read = 0
    for seed in range(60):
        talk = about.talk(random.Random(seed))
        words = set(shown[talk.pictures[0][1]].words)
        for kind, first, last in talk.kinds:
            ids = talk.ids[first : last - 1].tolist()
            answer = tokenizer.decode(ids)
            if kind == "read" and words >= set(answer.split()):
                assert len(ids) == len(answer)
                read += 1
    assert read > 20


def test_only_the_printed_words_of_an_answer_are_spelled(tokenizer):
    answer = 'The word "Wordy" in red letters.'
    ids = spelled(answer, ("Wordy",), tokenizer)
    before, after = tokenizer.encode('The word "'), tokenizer.encode('" in red letters.')
    letters = [id for letter in "Wordy" for id in tokenizer.encode(letter)]
    assert ids == [*before, *letters, *after]
    assert tokenizer.decode(ids) == answer
    assert tokenizer.decode(spelled("$5.00!\nOK", ("$5.00!", "OK"), tokenizer)) == "$5.00!\nOK"


def test_a_pool_is_what_the_tower_sees_and_the_talks_about_it_whoever_makes_it(
    tower, folder, format, tmp_path, needs_fonts
):
    stage = PoolStage(1_100, 30, seed=5, kinds=(("scene", 0.7), ("print", 0.3)))
    speech = Speech(folder / "tokenizer.json", format)
    with ThreadPoolExecutor(2) as executor:
        pools = [PoolDrawing(stage, tower, speech, tmp_path, executor).pool() for _ in range(2)]
    assert torch.equal(pools[0].cells, pools[1].cells)
    assert pools[0].cells.shape[:2] == (1_100, 16)
    for one, other in zip(pools[0].talks, pools[1].talks, strict=True):
        assert one.pictures == other.pictures
        assert (one.ids == other.ids).all()
    assert len(pools[0].talks) == 30
    assert {number // 500 for talk in pools[0].talks for _, number in talk.pictures} == {0, 1, 2}
    assert list(tmp_path.iterdir()) == []
