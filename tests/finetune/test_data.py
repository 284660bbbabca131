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
    "a message whose role is \"['user']\"": {"messages": [{"role": ["user"], "content": "a"}]},
    "a message whose role is 'tool'": {"messages": [{"role": "tool", "content": "a"}]},
    "a part of type 'audio'": {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
    "a place for a picture, but no picture": {
        "messages": [{"role": "user", "content": [{"type": "image"}]}]
    },
    "more pictures in 'images' than places for them": {
        "messages": [{"role": "user", "content": [{"type": "image"}]}],
        "images": ["a.png", "b.png"],
    },
    "'<image>' in a text, where {'type': 'image'} would be a picture's place": {
        "messages": [
            {"role": "user", "content": "<image>\nWhat?"},
            {"role": "assistant", "content": "b"},
        ],
        "images": ["a.png"],
    },
    "a place whose 'index' is not the next picture's": {
        "messages": [{"role": "user", "content": [{"type": "image", "index": 1}]}],
        "images": ["a.png", "b.png"],
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


def test_texts_in_utf8_may_begin_with_a_mark(pictures, tmp_path):
    """Editors on Windows write it; it would be learned as a part of the answer."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("Black.", encoding="utf-8-sig")
    (example,) = read_folder(tmp_path, "What is it?")
    assert example.turns[1].text == "Black."
    line = json.dumps({"question": "?", "answer": "!"})
    (tmp_path / "a.jsonl").write_text(line + "\n", encoding="utf-8-sig")
    (example,) = read_jsonl(tmp_path / "a.jsonl")
    assert example.turns[1].text == "!"


def test_pictures_without_places_come_before_the_first_question(pictures, tmp_path):
    messages = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    line = {"messages": messages, "images": [str(pictures / f"{n}.png") for n in ("red", "blue")]}
    (example,) = read_jsonl(write_lines(tmp_path / "a.jsonl", line))
    first, *others = example.conversation().messages
    assert [picture.name for picture in first.parts[:2]] == ["red.png", "blue.png"]
    assert first.parts[2:] == (Text("What?"),)
    assert [message.text for message in others] == ["Red.", "Sure?", "Yes."]


@pytest.mark.parametrize(("fraction", "kept"), [(0.05, 1), (0.25, 2), (0.9, 7), (0.0, 0)])
def test_of_few_items_one_at_least_is_evaluated_on(recipe, read_as, fraction, kept):
    data = load_data(but(recipe, eval_fraction=fraction), *read_as)
    assert (len(data.train), len(data.evaluation)) == (8 - kept, kept)


def test_one_item_is_not_trained_and_evaluated_on(recipe, read_as, tmp_path):
    data = write_lines(tmp_path / "one.jsonl", {"question": "?", "answer": "!"})
    recipe = but(recipe, data=str(data), eval_fraction=0.1)
    assert len(load_data(recipe, *read_as).train) == 1
    with pytest.raises(TrainingDataError, match="patience is set, and one example"):
        load_data(but(recipe, patience=1), *read_as)


@pytest.mark.parametrize(
    "stated",
    [{"columns": {"answer": "a"}}, {"split": "test"}, {"eval_split": "b"}, {"data_config": "en"}],
)
def test_what_only_the_hub_has_is_refused_for_files(recipe, read_as, stated):
    (name,) = stated
    with pytest.raises(TrainingDataError, match=f"{name} is stated, and the data are a file"):
        load_data(but(recipe, **stated), *read_as)


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
        kinds = [getattr(each, "feature", each) for each in self.features.values()]
        assert not (self.decoded and any(isinstance(each, FakeImage) for each in kinds))
        return row

    def select_columns(self, names):
        return FakeDataset(self.rows, {name: self.features[name] for name in names})

    def cast_column(self, name, feature):
        assert not getattr(feature, "feature", feature).decode
        assert type(feature) is type(self.features[name])
        return FakeDataset(self.rows, {**self.features, name: feature}, decoded=False)


class FakeImage:
    def __init__(self, decode=True):
        self.decode = decode


class FakeList:
    def __init__(self, feature):
        self.feature = feature


@pytest.fixture
def hub(monkeypatch):
    """Let `datasets.load_dataset` return what the test puts into the returned dictionary."""
    sets = {}
    module = types.ModuleType("datasets")
    module.Image, module.List = FakeImage, FakeList
    module.exceptions = types.ModuleType("datasets.exceptions")
    module.exceptions.DatasetsError = type("DatasetsError", (Exception,), {})
    sets["DatasetsError"] = module.exceptions.DatasetsError

    def load_dataset(name, config=None, *, split):
        found = sets[(name, split) if config is None else (name, config, split)]
        if isinstance(found, Exception):
            raise found
        return found

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", module.exceptions)
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


def encoded(pictures, *names):
    return [{"bytes": (pictures / f"{name}.png").read_bytes(), "path": None} for name in names]


def spoken(question):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "Red."}]


def place(index=None):
    """A picture's place as Arrow stores it: every part has every key."""
    return {"type": "image", "text": None, "index": index}


HUB_ROWS = {  # messages, names of pictures -> the pictures read, or what is wrong
    "text alone": (spoken("What?"), ["red", "blue"], ["red", "blue"]),
    "no picture": (spoken("What?"), [], []),
    "places in order": (spoken([place(0), place(1)]), ["red", "blue"], ["red", "blue"]),
    "too few": (spoken([place(), place()]), ["red"], "a place for a picture, but no picture"),
    "too many": (spoken([place()]), ["red", "blue"], "more pictures in 'images' than places"),
    "other order": (spoken([place(1), place(0)]), ["red", "blue"], "a place whose 'index'"),
}


@pytest.mark.parametrize("case", HUB_ROWS)
def test_pictures_of_hub_messages_are_matched_with_their_places(hub, pictures, case):
    messages, names, expected = HUB_ROWS[case]
    rows = [{"messages": messages, "images": encoded(pictures, *names)}]
    hub["me/set", "train"] = FakeDataset(rows, {"messages": 0, "images": [0]})
    (found,) = read_hub("me/set", {"messages": "messages", "picture": "images"}, "train")
    if isinstance(expected, str):
        assert isinstance(found, Problem)
        assert found.what.startswith(expected)
    else:
        wanted = [Picture.open(pictures / f"{name}.png") for name in expected]
        assert list(found.conversation().pictures) == wanted


def test_one_picture_of_a_row_is_not_taken_for_two(hub, pictures):
    rows = [{"messages": spoken([place(), place()]), "image": encoded(pictures, "red")[0]}]
    hub["me/set", "train"] = FakeDataset(rows, {"messages": 0, "image": FakeImage()})
    (found,) = read_hub("me/set", {"messages": "messages", "picture": "image"}, "train")
    assert found == Problem("me/set:0", "a place for a picture, but no picture")


def test_a_row_without_its_picture_is_named(hub, pictures):
    rows = [{"image": each, "a": "Red."} for each in (encoded(pictures, "red")[0], None)]
    hub["me/set", "train"] = FakeDataset(rows, {"image": FakeImage(), "a": 0})
    good, bad = read_hub("me/set", {"picture": "image", "answer": "a"}, "train", "What?")
    assert isinstance(good, Example)
    assert bad == Problem("me/set:1", "a row without a picture")


def test_what_is_evaluated_may_be_another_split_or_configuration(hub, recipe, read_as):
    for split, answer in (("train", "learned"), ("validation", "evaluated")):
        rows = [{"question": "?", "answer": answer}]
        hub["me/set", "en", split] = FakeDataset(rows, {"question": 0, "answer": 0})
    recipe = but(recipe, data="me/set", data_config="en", eval_split="validation")
    data = load_data(recipe, *read_as)
    assert [each.turns[1].text for each in data.train] == ["learned"]
    assert [each.turns[1].text for each in data.evaluation] == ["evaluated"]


def test_a_split_of_a_file_to_evaluate_on_is_refused(recipe, read_as):
    wanted = but(recipe, data="me/set", eval_data=recipe.data, eval_split="validation")
    with pytest.raises(TrainingDataError, match="eval_split is stated, and eval_data is a file"):
        load_data(wanted, *read_as)


@pytest.mark.parametrize("kind", ["DatasetsError", RuntimeError, ValueError, ConnectionError])
def test_what_datasets_says_is_told_in_one_line(hub, kind):
    kind = hub.get(kind, kind)
    hub["me/set", "train"] = kind("Dataset scripts are no longer supported\nTraceback")
    with pytest.raises(TrainingDataError, match=r"'me/set' .*no longer supported$"):
        read_hub("me/set", {"answer": "a"}, "train")


def test_the_real_package_reads_what_the_stand_in_does(pictures, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = {
        "messages": [spoken([{"type": "image"}, {"type": "text", "text": "or"}])] * 2,
        "images": [[str(pictures / "red.png")], [str(pictures / "blue.png")]],
    }
    rows["messages"][0][1]["content"] = [text("Red.")]  # Arrow wants one type in all rows
    string = datasets.Value("string")
    parts = datasets.List({"type": string, "text": string})
    features = {
        "messages": datasets.List({"role": string, "content": parts}),
        "images": datasets.List(datasets.Image()),
    }
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: made)
    items = read_hub("me/set", {"messages": "messages", "picture": "images"}, "train")
    found = [each.conversation().pictures[0] for each in items]
    assert found == [Picture.open(pictures / f"{name}.png") for name in ("red", "blue")]


def test_the_real_package_knows_no_such_set(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    with pytest.raises(TrainingDataError, match=r"'me/set' .*cannot be read: "):
        read_hub("me/set", {}, "train")


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
