"""Training data in every form, and what is said about items that cannot be used."""

import json
import sys
import types

import pytest
from PIL import Image

from gemma3vl_app.errors import TrainingDataError
from gemma3vl_app.finetune.data import load_data
from gemma3vl_app.finetune.examples import Example, Problem
from gemma3vl_app.finetune.sources import read_folder, read_hub, read_items, read_jsonl
from gemma3vl_app.messages import Text
from gemma3vl_app.pictures import Picture
from tests.finetune.conftest import but


@pytest.fixture
def read_as(tokenizer, format):
    return tokenizer, format


def write_lines(path, *items):
    path.write_text("\n".join(json.dumps(item) for item in items) + "\n", encoding="utf-8")
    return path


def text(value):
    return {"type": "text", "text": value}


def test_exported_chats_are_read_with_their_system_text_and_pictures_in_place(pictures, tmp_path):
    (tmp_path / "pics").mkdir()
    for name in ("red", "blue"):
        (tmp_path / "pics" / f"{name}.png").write_bytes((pictures / f"{name}.png").read_bytes())
    line = {
        "messages": [
            {"role": "system", "content": [text("Be brief.")]},
            {"role": "user", "content": [{"type": "image"}, text("or"), {"type": "image"}]},
            {"role": "assistant", "content": [text("The first.")]},
        ],
        "images": ["pics/red.png", "pics/blue.png"],
    }
    (example,) = read_jsonl(write_lines(tmp_path / "chats.jsonl", line))
    conversation = example.conversation()
    assert conversation.system == "Be brief."
    assert [type(part) for part in conversation.messages[0].parts] == [Picture, Text, Picture]
    assert [picture.name for picture in conversation.pictures] == ["red.png", "blue.png"]
    assert conversation.messages[1].text == "The first."


def test_what_the_export_writes_is_read(pictures, tmp_path):
    from gemma3vl_app.chat import Chat
    from gemma3vl_app.export.training import training_lines
    from gemma3vl_app.testing import ScriptedBackend

    chat = Chat(ScriptedBackend(["It is ", "red."]), system="Be brief.")
    chat.ask("What is it?", images=[pictures / "red.png"])
    chat.ask("Sure?")
    document = training_lines(chat.transcript, "chat-pictures", branches=False)
    (tmp_path / "chat-pictures").mkdir()
    for name, data in document.pictures.items():
        (tmp_path / "chat-pictures" / name).write_bytes(data)
    (tmp_path / "chat.jsonl").write_text(document.text, encoding="utf-8")
    (example,) = read_jsonl(tmp_path / "chat.jsonl")
    assert example.conversation() == chat.conversation


def test_places_may_name_their_pictures_themselves(pictures, tmp_path):
    part = {"type": "image", "path": str(pictures / "red.png")}
    messages = [
        {"role": "user", "content": [part, text("What?")]},
        {"role": "assistant", "content": "Red."},
    ]
    (example,) = read_jsonl(write_lines(tmp_path / "a.jsonl", {"messages": messages}))
    assert example.conversation().pictures[0].name == "red.png"


def test_a_short_item_is_one_question_and_one_answer(pictures):
    examples = read_items(str(pictures / "data.jsonl"), columns={})
    assert len(examples) == 8
    assert examples[0].where == "data.jsonl:1"
    question, answer = examples[0].conversation().messages
    assert question.parts[1] == Text("What colour?")
    assert answer.text == "It is red."


def test_a_folder_of_pictures_has_its_answers_beside_them(pictures, tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.jpg")
    (tmp_path / "a.txt").write_text("Black.", encoding="utf-8")
    good, bad = read_folder(tmp_path, "What is it?")
    assert good.turns[0].parts[1] == "What is it?"
    assert good.turns[1].text == "Black."
    assert bad == Problem(f"{tmp_path.name}/b.jpg", "no text beside its picture")


def test_pictures_are_not_opened_until_an_example_is_used(tmp_path):
    line = {"picture": "gone.png", "question": "?", "answer": "!"}
    (example,) = read_jsonl(write_lines(tmp_path / "a.jsonl", line))
    assert isinstance(example, Example)


BAD = {
    "an empty answer": {"question": "a", "answer": "  "},
    "no answer at the end": {"messages": [{"role": "user", "content": "a"}]},
    "neither 'messages' nor 'answer'": {"prompt": "a"},
    "no JSON object": "just text",
    "a message whose role is 'tool'": {"messages": [{"role": "tool", "content": "a"}]},
    "a part of type 'audio'": {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
    "a place for a picture, but no picture": {
        "messages": [{"role": "user", "content": [{"type": "image"}]}]
    },
    "more pictures in 'images' than places for them": {
        "messages": [{"role": "user", "content": "a"}],
        "images": ["a.png"],
    },
    "an answer that holds a picture": {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [text("x"), {"type": "image", "path": "a.png"}]},
        ]
    },
    "a picture that is named by no path": {"picture": 7, "question": "a", "answer": "b"},
    "neither a picture nor a question": {"answer": "b"},
}


@pytest.mark.parametrize("what", BAD)
def test_an_item_that_cannot_be_used_is_named(tmp_path, what):
    items = read_jsonl(write_lines(tmp_path / "a.jsonl", BAD[what]))
    assert items == [Problem("a.jsonl:1", what)]


@pytest.fixture
def mixed(pictures, tmp_path):
    """Data of one good item, and of several bad ones of each kind."""
    good = {"picture": str(pictures / "red.png"), "question": "?", "answer": "Red."}
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return write_lines(
        tmp_path / "mixed.jsonl",
        good,
        *[{**good, "picture": f"gone{number}.png"} for number in range(4)],
        {**good, "picture": "broken.png"},
        {**good, "answer": ""},
        {**good, "answer": "word " * 500},
    )


def test_all_bad_items_are_counted_and_named_before_training(mixed, recipe, read_as):
    recipe = but(recipe, data=str(mixed), max_tokens=200)
    with pytest.raises(TrainingDataError) as raised:
        load_data(recipe, *read_as)
    message = str(raised.value)
    assert "\n" not in message
    assert "7 of 8 items cannot be learned from" in message
    assert "5 with a picture that cannot be used" in message
    assert "(mixed.jsonl:2, mixed.jsonl:3, mixed.jsonl:4 and 2 more" in message
    assert "1 with an empty answer (mixed.jsonl:7)" in message
    assert "1 with too many tokens (mixed.jsonl:8: 5" in message
    assert "max_tokens is 200" in message
    assert "bad_items=skip" in message


def test_bad_items_are_skipped_where_the_recipe_says_so(mixed, recipe, read_as, caplog):
    data = load_data(but(recipe, data=str(mixed), max_tokens=200, bad_items="skip"), *read_as)
    assert [each.where for each in data.train] == ["mixed.jsonl:1"]
    assert "7 of 8 items cannot be learned from" in caplog.text


def test_a_part_is_kept_for_evaluation_by_the_seed(recipe, read_as):
    data = load_data(but(recipe, eval_fraction=0.25), *read_as)
    again = load_data(but(recipe, eval_fraction=0.25), *read_as)
    other = load_data(but(recipe, eval_fraction=0.25, seed=1), *read_as)
    assert len(data.train) == 6
    assert len(data.evaluation) == 2
    assert not {*data.train} & {*data.evaluation}
    assert data == again
    assert data.digest == again.digest != other.digest


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_data_are_an_error(recipe, read_as, tmp_path, content):
    (tmp_path / "empty.jsonl").write_text(content)
    with pytest.raises(TrainingDataError, match=r"nothing to learn from in 'empty\.jsonl'"):
        load_data(but(recipe, data=str(tmp_path / "empty.jsonl")), *read_as)


def test_a_missing_file_is_named_without_its_folder(recipe, read_as, tmp_path):
    with pytest.raises(TrainingDataError, match=r"The data 'gone\.jsonl' cannot be read"):
        load_data(but(recipe, data=str(tmp_path / "gone.jsonl")), *read_as)


# --- the hub: a stand-in with the documented interface of `datasets`, which need not be here ------


class FakeDataset:
    """As much of `datasets.Dataset` as is used; counts how often a picture column is read."""

    def __init__(self, rows, features, decoded=True):
        self.rows, self.features, self.decoded = rows, features, decoded
        self.reads = 0

    column_names = property(lambda self: list(self.features))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.reads += 1
        row = {name: self.rows[index][name] for name in self.features}
        assert not (self.decoded and any(isinstance(f, FakeImage) for f in self.features.values()))
        return row

    def select_columns(self, names):
        return FakeDataset(self.rows, {name: self.features[name] for name in names})

    def cast_column(self, name, feature):
        assert not feature.decode
        return FakeDataset(self.rows, {**self.features, name: feature}, decoded=False)


class FakeImage:
    def __init__(self, decode=True):
        self.decode = decode


@pytest.fixture
def hub(monkeypatch):
    """Let `datasets.load_dataset` return what the test puts into the returned dictionary."""
    sets = {}
    module = types.ModuleType("datasets")
    module.Image = FakeImage
    module.load_dataset = lambda name, *, split: sets[name, split]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return sets


def test_a_hub_data_set_is_read_through_its_columns(hub, pictures):
    data = (pictures / "red.png").read_bytes()
    rows = [{"image": {"bytes": data, "path": None}, "q": "What?", "a": "Red.", "id": 7}]
    hub["me/set", "test"] = FakeDataset(rows, {"image": FakeImage(), "q": 0, "a": 0, "id": 0})
    columns = {"picture": "image", "question": "q", "answer": "a"}
    (example,) = read_hub("me/set", columns, "test")
    assert example.where == "me/set:0"
    assert example.conversation().pictures[0] == Picture.open(pictures / "red.png")
    assert example.turns[1].text == "Red."


def test_hub_messages_take_their_pictures_from_a_column_of_lists(hub, pictures):
    data = [{"bytes": (pictures / f"{n}.png").read_bytes()} for n in ("red", "blue")]
    messages = [
        {"role": "user", "content": [{"type": "image"}, text("or"), {"type": "image"}]},
        {"role": "assistant", "content": [text("Neither.")]},
    ]
    hub["me/set", "train"] = FakeDataset(
        [{"messages": messages, "images": data}], {"messages": 0, "images": [0]}
    )
    columns = {"messages": "messages", "picture": "images"}
    (example,) = read_hub("me/set", columns, "train")
    expected = [Picture.open(pictures / f"{n}.png") for n in ("red", "blue")]
    assert list(example.conversation().pictures) == expected


def test_an_unknown_column_is_named_with_those_there_are(hub):
    hub["me/set", "train"] = FakeDataset([{"a": "x"}], {"a": 0})
    with pytest.raises(TrainingDataError, match="no column 'text'; it has a"):
        read_hub("me/set", {"answer": "text"}, "train")
    with pytest.raises(TrainingDataError, match="which column of 'me/set' is the answer"):
        read_hub("me/set", {}, "train")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TrainingDataError, match=r"pip install 'gemma3vl-app\[train\]'"):
        read_items("me/set", columns={})
