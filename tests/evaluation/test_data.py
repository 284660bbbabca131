"""Where items come from: files of one's own, the published forms, and the drawing of scenes."""

import json
import sys

import pytest

import gemma3vl_app as gv
from gemma3vl_app.errors import EvaluationError, PictureError, TrainingError
from gemma3vl_app.evaluation import data as module
from gemma3vl_app.evaluation.data import read_data
from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.prompts import conversation_of
from gemma3vl_app.evaluation.suites import SUITES
from gemma3vl_app.pictures import Picture
from tests.evaluation import published
from tests.evaluation.answering import AnsweringBackend, animals, write_jsonl


def opened(item):
    return [picture.open().rgb.getpixel((3, 3)) for picture in item.pictures]


# --- files of one's own ---------------------------------------------------------------------------


def test_a_file_of_ones_own_has_a_question_a_line(tmp_path):
    path = write_jsonl(
        tmp_path,
        {"picture": "a.png", "question": "What?", "answer": "red"},
        {"id": "x", "pictures": ["a.png", "a.png"], "question": "Same?", "answers": ["yes", 2]},
    )
    first, second = read_data(SUITES["docvqa"], path).items
    assert (first.id, first.question, first.answers, first.kinds) == ("1", "What?", ("red",), ())
    assert (second.id, second.answers, len(second.pictures)) == ("x", ("yes", "2"), 2)
    assert opened(first) == [(255, 0, 0)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"picture": "a.png", "question": "What?"}, "no answer that is right"),
        ({"picture": "a.png", "question": "What?", "answers": [" "]}, "no answer that is right"),
        ({"answer": "red"}, "neither a picture nor a question"),
        ({"picture": 3, "question": "What?", "answer": "red"}, "named by no path"),
        ({"question": ["What?"], "answer": "red"}, "a question that is no text"),
        ({"question": "?", "options": "['a'", "answer": "A"}, "options that are no list"),
        ({"question": "?", "options": ["a"], "answer": "A"}, "no list of 2 to 26"),
        ({"question": "?", "options": ["a", "b"], "answer": "C"}, "no letter of its options"),
        ({"question": "?", "options": ["a", "b"], "answer": " "}, "no answer that is right"),
    ],
)
def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path, row, problem):
    good = {"question": "What?", "answer": "red"}
    path = write_jsonl(tmp_path, good, row)
    with pytest.raises(EvaluationError, match="1 of 2 rows") as told:
        read_data(SUITES["mmmu"], path)
    assert "data.jsonl:2 has " in str(told.value) and problem in str(told.value)


@pytest.mark.parametrize("name", sorted(set(SUITES) - {"mmmu", "scenes"}))
def test_options_are_refused_by_suites_that_do_not_ask_for_them(tmp_path, name):
    good = {"picture": "a.png", "question": "What?", "answer": "red", "options": []}
    path = write_jsonl(tmp_path, good, good | {"options": ["red", "blue"], "answer": "B"})
    with pytest.raises(EvaluationError, match=rf"1 of 2 .*:2 has options, which {name} does not"):
        read_data(SUITES[name], path)
    with pytest.raises(EvaluationError, match="use mmmu for them"):
        read_data(SUITES[name], path)


@pytest.mark.parametrize("name", ["docvqa", "ocrbench", "reading", "chartqa"])
def test_a_blank_reference_beside_a_real_one_is_left_out(tmp_path, name):
    row = {"picture": "a.png", "question": "What?", "answers": ["", "red", " \u3000\n"]}
    assert read_data(SUITES[name], write_jsonl(tmp_path, row)).items[0].answers == ("red",)


@pytest.mark.parametrize("name", ["textvqa", "vqav2"])
def test_votes_are_of_one_person_or_of_so_many_that_an_answer_can_be_fully_right(tmp_path, name):
    def read(*answers):
        row = {"picture": "a.png", "question": "What?", "answers": answers}
        return read_data(SUITES[name], write_jsonl(tmp_path, row)).items[0].answers

    for few in (("red", "crimson"), ("red", "red", "red")):
        with pytest.raises(EvaluationError, match=rf":1 has the answers of {len(few)} people"):
            read(*few)
    assert read("red") == ("red",)
    four = ("red", "red", "red", "")  # whoever wrote nothing is one of those who were asked
    assert read(*four) == four
    item = Item("1", "What?", ("red",) * 4, ())
    assert SUITES[name].metrics[0].score_all([item], ["red"])[0].score == 1.0


def test_a_kind_has_not_the_name_of_all_kinds_together(tmp_path):
    rows = [
        {"picture": "a.png", "question": f"{kind}?", "answer": "red", "kinds": ["x", kind]}
        for kind in ("all", "b")
    ]
    first, second = read_data(SUITES["docvqa"], write_jsonl(tmp_path, *rows)).items
    assert (first.kinds, second.kinds) == (("x", "all (kind)"), ("x", "b"))


def test_a_kind_keeps_its_name_but_for_the_halves_of_chartqa(tmp_path):
    row = {"picture": "a.png", "question": "What?", "answer": "red", "kind": "blood_test"}
    path = write_jsonl(tmp_path, row)
    assert read_data(SUITES["docvqa"], path).items[0].kinds == ("blood_test",)
    assert read_data(SUITES["chartqa"], path).items[0].kinds == ("blood_test",)


def test_lines_that_are_no_objects_and_files_that_are_no_text(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"question"\n[1]\n' * 2)
    with pytest.raises(EvaluationError, match=r"4 of 4 rows .*data.jsonl:3 has no JSON object; "):
        read_data(SUITES["docvqa"], path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvaluationError, match="no UTF-8 text"):
        read_data(SUITES["docvqa"], path)
    path.write_text("\n")
    with pytest.raises(EvaluationError, match="it is empty"):
        read_data(SUITES["docvqa"], path)
    with pytest.raises(EvaluationError, match=r"'gone.jsonl' cannot be read: No such file"):
        read_data(SUITES["docvqa"], tmp_path / "gone.jsonl")


def test_ids_that_come_twice_are_told_apart(tmp_path):
    row = {"id": "page", "question": "What?", "answer": "red"}
    data = read_data(SUITES["docvqa"], write_jsonl(tmp_path, row, row))
    assert [item.id for item in data.items] == ["page-0", "page-1"]


def test_other_questions_are_other_data(tmp_path):
    row = {"question": "What?", "answer": "red"}
    digests = {
        read_data(SUITES["docvqa"], write_jsonl(tmp_path, row | change)).sha256
        for change in ({}, {"question": "Who?"}, {"answer": "blue"}, {"picture": "a.png"}, {})
    }
    assert len(digests) == 4


def test_a_larger_limit_holds_the_items_of_a_smaller_one(tmp_path):
    data = read_data(SUITES["docvqa"], animals(tmp_path, 40))
    few, more = data.chosen(5, seed=1), data.chosen(12, seed=1)
    assert set(few) < set(more) < set(data.items)
    assert [int(item.id) for item in few] == sorted(int(item.id) for item in few)
    assert few != data.chosen(5, seed=2)
    assert data.chosen(99, seed=1) == data.chosen(None, seed=1) == data.items


# --- published forms ------------------------------------------------------------------------------


@pytest.fixture(params=["saved", "splits", "parquet"])
def folder_of(request, tmp_path):
    """Write a data set into a folder in one of the ways that folders come."""
    import datasets

    def write(columns, split):
        made = published.dataset(columns)
        if request.param == "saved":
            made.save_to_disk(tmp_path / "set")
        elif request.param == "splits":
            datasets.DatasetDict({"train": made, split: made}).save_to_disk(tmp_path / "set")
        else:
            made.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
        return tmp_path / "set"

    return write


@pytest.mark.parametrize("name", published.OF)
def test_every_published_form_is_read_from_a_folder(name, folder_of):
    suite, columns = SUITES[name], published.OF[name]
    data = read_data(suite, folder_of(columns, suite.published.split))
    count = len(columns["question"])
    assert len(data.items) == count
    assert data.config is None and data.split in (None, suite.published.split)
    told = [conversation_of(suite, item, "off") for item in data.items]
    assert all(len(asked.pictures) >= 1 for asked in told)
    assert opened(data.items[0])[0] == (255, 0, 0)
    assert all(item.answers for item in data.items)


def items_of(name, columns):
    suite = SUITES[name]
    return list(module._read_dataset(published.dataset(columns), suite, name))


def test_ids_kinds_and_references_are_those_of_the_published_columns():
    docvqa = items_of("docvqa", published.DOCVQA)
    assert [item.id for item in docvqa] == ["337", "338"]
    assert docvqa[0].kinds == ("handwritten", "form")
    assert docvqa[1].answers == ("12", "12.00")
    (vqav2,) = items_of("vqav2", published.VQAV2)
    assert (vqav2.id, vqav2.kinds) == ("262148000", ("other",))
    assert vqav2.answers == ("net",) * 8 + ("netting", "mesh")
    assert len(items_of("textvqa", published.TEXTVQA)[0].answers) == 10
    assert items_of("coco", published.COCO)[1].id == "000000190236.jpg"
    assert items_of("ocrbench", published.OCRBENCH)[0].kinds == ("Regular Text Recognition",)


def test_whole_pages_are_read_from_a_set_in_the_form_of_ocrbench(folder_of):
    reading = read_data(SUITES["reading"], folder_of(published.OCRBENCH, "test"), split="test")
    assert [item.answers for item in reading.items][2:] == [
        ("THE COFFEE SHOP",),
        ("1/8/93", "January 8"),
    ]
    said = {"": "The Coffee Shop"}
    done = gv.evaluate(AnsweringBackend(said), "reading", data=reading)
    assert {score.metric for score in done.scores} == {"cer", "wer"}
    assert not done.failed and done.score.value > 0


def test_chartqa_is_read_in_both_forms_with_its_halves_as_kinds():
    first, second = items_of("chartqa", published.CHARTQA)
    assert (first.kinds, second.kinds) == (("human",), ("augmented",))
    first, second = items_of("chartqa", published.CHARTQA_M4)
    assert (first.question, first.answers, first.kinds) == ("How many bars?", ("3",), ("human",))
    assert second.kinds == ("machine",)


def test_mmmu_has_options_subjects_and_pictures_where_the_question_names_them():
    choice, free = items_of("mmmu", published.MMMU)
    assert (choice.options, choice.answers) == (("Ann", "Bob", "Cy", "Di"), ("B",))
    assert (choice.kinds, free.kinds) == (("Art Theory",), ("Math",))
    assert (len(choice.pictures), len(free.pictures), free.options) == (1, 2, ())
    (asked,) = conversation_of(SUITES["mmmu"], free, "off").messages
    shown = [
        part.rgb.getpixel((3, 3)) if isinstance(part, Picture) else part.text
        for part in asked.parts
    ]
    assert shown[0] == "How many dots does "
    assert shown[1] == (0, 0, 255)
    assert shown[2] == " have more than "
    assert shown[3] == (255, 0, 0)


def test_a_place_without_a_picture_stays_text_and_a_picture_without_a_place_comes_first(tmp_path):
    path = write_jsonl(
        tmp_path, {"picture": "a.png", "question": "Is <image 3> red?", "answer": "A"}
    )
    (item,) = read_data(SUITES["docvqa"], path).items
    (asked,) = conversation_of(SUITES["docvqa"], item, "off").messages
    assert isinstance(asked.parts[0], Picture)
    assert asked.text.startswith("Is <image 3> red?")


def test_a_place_of_more_digits_than_any_number_has_stays_text(tmp_path):
    place = f"<image {'9' * 5_000}>"
    path = write_jsonl(tmp_path, {"picture": "a.png", "question": place, "answer": "A"})
    (item,) = read_data(SUITES["docvqa"], path).items
    (asked,) = conversation_of(SUITES["docvqa"], item, "off").messages
    assert asked.text.startswith(place)


def test_no_picture_is_read_before_its_item_is_asked(monkeypatch):
    columns = published.DOCVQA | {"image": ["red", None]}
    monkeypatch.setattr(Picture, "open", lambda *_, **__: pytest.fail("a picture was opened"))
    first, second = items_of("docvqa", columns)
    assert len(first.pictures) == 1
    assert second.pictures == ()


def test_a_picture_that_is_broken_is_told_when_it_is_opened():
    import datasets

    raw = published.dataset(published.DOCVQA).cast_column("image", datasets.Image(decode=False))
    broken = raw.map(lambda row: row | {"image": {"bytes": b"no picture", "path": None}})
    item, _ = module._read_dataset(broken, SUITES["docvqa"], "docvqa")
    with pytest.raises(PictureError, match="row 0"):
        item.pictures[0].open()


def test_the_hub_is_asked_for_the_suites_own_set(monkeypatch):
    import datasets

    asked = []

    def load(name, config, *, split):
        asked.append((name, config, split))
        return published.dataset(published.DOCVQA)

    monkeypatch.setattr(datasets, "load_dataset", load)
    parts = [
        read_data(SUITES["docvqa"]),
        read_data(SUITES["docvqa"], "me/mine", config="small", split="dev"),
        read_data(SUITES["docvqa"], "me/mine"),
    ]
    assert [len(data.items) for data in parts] == [2, 2, 2]
    assert [(data.name, data.config, data.split) for data in parts] == asked
    assert asked == [
        ("lmms-lab/DocVQA", "DocVQA", "validation"),
        ("me/mine", "small", "dev"),
        ("me/mine", None, "validation"),
    ]


def test_what_datasets_says_is_told_in_one_line(tmp_path, folder_of, monkeypatch):
    import datasets

    def fail(*_, **__):
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(EvaluationError, match=r"DocVQA' cannot be read: Couldn't reach the hub$"):
        read_data(SUITES["docvqa"])


def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path):
    import datasets

    made = published.dataset(published.DOCVQA)
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "set")
    with pytest.raises(EvaluationError, match="cannot be read: it has the splits test, train"):
        read_data(SUITES["docvqa"], tmp_path / "set")


def test_without_the_package_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EvaluationError, match=r"pip install 'gemma3vl-app\[evaluate\]'"):
        read_data(SUITES["docvqa"])


# --- scenes ---------------------------------------------------------------------------------------


def test_scenes_come_in_turns_of_all_kinds_and_are_the_same_every_time(needs_fonts):
    few, more = (read_data(SUITES["scenes"], limit=limit) for limit in (10, 13))
    assert [item.id for item in few.items][:2] == ["colour-0", "shape-0"]
    assert len({item.kinds for item in few.items}) == 9
    assert [i.question for i in more.items[:10]] == [i.question for i in few.items]
    assert [i.pictures[0].open() for i in more.items[:10]] == [
        i.pictures[0].open() for i in few.items
    ]
    assert few.sha256 == more.sha256


def test_without_fonts_reading_is_left_out_and_said(monkeypatch):
    def items(kind):
        if kind == "read":
            raise TrainingError("Install fonts.")
        return made(kind)

    made = module.scenes.items
    monkeypatch.setattr(module.scenes, "items", items)
    data = read_data(SUITES["scenes"], limit=9)
    assert {item.kinds[0] for item in data.items} == set(module.scenes.KINDS) - {"read"}
    assert data.notes == ("The kind 'read' is left out. Install fonts.",)


def test_scenes_take_no_data_and_reading_needs_some(tmp_path):
    with pytest.raises(EvaluationError, match="draws its own pictures"):
        read_data(SUITES["scenes"], animals(tmp_path))
    with pytest.raises(EvaluationError, match="has no data of its own"):
        read_data(SUITES["reading"])
    path = tmp_path / "pages.jsonl"
    path.write_text(json.dumps({"picture": "0.png", "text": "All of it."}))
    assert read_data(SUITES["reading"], path).items[0].answers == ("All of it.",)
