"""What is written where, what is taken up again, and what is left alone."""

import csv
import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import gemma3vl_app as gv
from gemma3vl_app.errors import ConversationError, PictureError
from gemma3vl_app.folders import journal
from gemma3vl_app.folders.batch import check_batch
from gemma3vl_app.generation import Answer, Greedy, Sample, Usage
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES, ScriptedBackend
from tests.folders.naming_backend import NamingBackend, draw_pictures

NAMES = ["1.png", "2.png", "3.png"]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}


@pytest.fixture
def folder(tmp_path) -> Path:
    return draw_pictures(tmp_path / "photos", *NAMES)


def ask(folder: Path, out: object, backend: NamingBackend | None = None, **options):
    """Run the batch; return the names that were asked about, and the report."""
    backend = backend or NamingBackend()
    report = gv.batch(backend, folder, **{"prompt": "What?", "out": out, **options})
    return backend.asked, report


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


# --- JSON lines -----------------------------------------------------------------------------------


def test_a_line_has_all_about_its_picture(folder, tmp_path):
    (folder / "2.png").write_bytes(b"no picture")
    _, report = ask(folder, tmp_path / "a.jsonl")
    size = (folder / "1.png").stat().st_size
    usage = {"prompt_tokens": 20, "image_tokens": 16, "completion_tokens": 4}
    first, second, _ = lines(tmp_path / "a.jsonl")
    assert first == {
        **{"file": "1.png", "bytes": size, "text": "This is 1.png."},
        **{"finish_reason": "stop", "usage": usage},
    }
    assert list(second) == ["file", "bytes", "error"]
    assert report.out == tmp_path / "a.jsonl"
    assert report.items[0].usage == Usage(20, 0, 16, 4)


def test_the_same_call_again_asks_nothing_and_reports_everything(folder, tmp_path):
    _, first = ask(folder, tmp_path / "a.jsonl")
    before = (tmp_path / "a.jsonl").read_bytes()
    asked, again = ask(folder, tmp_path / "a.jsonl")
    assert asked == []
    assert (again.items, again.earlier, first.earlier) == (first.items, 3, 0)
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_new_pictures_are_added_and_lines_of_deleted_ones_stay(folder, tmp_path):
    ask(folder, tmp_path / "a.jsonl")
    draw_pictures(folder, "0.png")
    (folder / "2.png").unlink()
    asked, report = ask(folder, tmp_path / "a.jsonl")
    assert asked == ["0.png"]
    assert [line["file"] for line in lines(tmp_path / "a.jsonl")] == [*NAMES, "0.png"]
    assert [item.file for item in report.items] == ["0.png", "1.png", "3.png"]


@pytest.mark.parametrize("out", ["a.jsonl", "a.csv", "sidecars"])
def test_a_picture_whose_size_changed_is_asked_about_again(folder, tmp_path, out):
    out = out if out == "sidecars" else tmp_path / out
    ask(folder, out)
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes() + b"more")
    backend = NamingBackend(answers={"2.png": Answer("It changed.", "stop")})
    asked, report = ask(folder, out, backend)
    assert asked == ["2.png"]
    assert not report.failed
    assert report.items[1].text == "It changed."
    if out == "sidecars":
        assert (folder / "2.png.txt").read_text() == "It changed.\n"
    assert ask(folder, out)[0] == []


def test_failed_pictures_are_asked_about_again_only_when_wanted(folder, tmp_path):
    out = tmp_path / "a.jsonl"
    ask(folder, out, NamingBackend(failing={"2.png": PictureError("Bad.")}))
    assert ask(folder, out)[0] == []
    asked, report = ask(folder, out, retry_failed=True)
    assert asked == ["2.png"]
    assert not report.failed
    assert sorted(line["file"] for line in lines(out)) == NAMES


@pytest.mark.parametrize("torn", [b"", b'{"file": "2.p', b"\0" * 40, b'{"fi\n{"file": "3.png"}\n'])
def test_a_torn_end_is_dropped_and_asked_about_again(folder, tmp_path, torn):
    out = tmp_path / "a.jsonl"
    ask(folder, out)
    whole = out.read_bytes()
    first = whole.index(b"\n") + 1
    out.write_bytes(whole[:first] + torn)
    asked, _ = ask(folder, out)
    assert asked == ["2.png", "3.png"]
    assert out.read_bytes() == whole


def test_a_line_that_is_damaged_in_the_middle_is_told_and_nothing_is_cut_off(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(journal, "LARGEST_GROUP", 2)
    out = tmp_path / "a.jsonl"
    ask(folder, out)
    out.write_bytes(b"x" + out.read_bytes())
    before = out.read_bytes()
    with pytest.raises(ConversationError, match=r"Line 1 of 'a.jsonl' is damaged"):
        ask(folder, out)
    assert out.read_bytes() == before
    assert ask(folder, out, restart=True)[0] == NAMES


def test_names_that_are_no_valid_text_and_odd_characters_come_back(folder, tmp_path):
    odd = ["a\u2028b.png", "c\nd.png", os.fsdecode(b"caf\xe9.png")]
    for name in odd:
        os.link(folder / "1.png", folder / name)
    for out in ("a.jsonl", "a.csv"):
        _, report = ask(folder, tmp_path / out)
        assert {item.file for item in report.items} == {*NAMES, *odd}
        assert ask(folder, tmp_path / out)[0] == []


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"prompt": "Why?"}, r'prompt \(was "What\?", now "Why\?"\)'),
        ({"system": "Be brief."}, "system"),
        ({"sampling": Sample(seed=1)}, "sampling"),
        ({"sampling": Sample(seed=2)}, "sampling"),
        ({"max_new_tokens": 5}, "max_new_tokens"),
        ({"crops": "off"}, "crops"),
        ({"adapter": "poet"}, "adapter"),
        ({"schema": SCHEMA}, "schema"),
    ],
)
@pytest.mark.parametrize("out", ["a.jsonl", "a.csv", "sidecars"])
def test_other_settings_are_refused_with_the_one_that_differs(folder, tmp_path, changed, told, out):
    out = out if out == "sidecars" else tmp_path / out
    backend = NamingBackend()
    backend.add_adapter("poet", "somewhere")
    ask(folder, out, backend)
    backend.asked.clear()
    with pytest.raises(ConversationError, match=f"other settings: {told}"):
        ask(folder, out, backend, **changed)
    assert backend.asked == []
    assert ask(folder, out, backend, restart=True, **changed)[0] == NAMES


@pytest.mark.parametrize("changed", ["model", "revision", "tokenizer_sha256", "weights"])
def test_another_model_is_refused(folder, tmp_path, changed):
    ask(folder, tmp_path / "a.jsonl")
    other = NamingBackend(capabilities=replace(DEFAULT_CAPABILITIES, **{changed: "other"}))
    with pytest.raises(ConversationError, match="model"):
        ask(folder, tmp_path / "a.jsonl", other)


def test_the_same_model_on_another_machine_goes_on(folder, tmp_path):
    ask(folder, tmp_path / "a.jsonl")
    moved = NamingBackend(capabilities=replace(DEFAULT_CAPABILITIES, arithmetic="other"))
    assert ask(folder, tmp_path / "a.jsonl", moved)[0] == []


def test_pictures_of_another_folder_are_refused(folder, tmp_path):
    ask(folder, tmp_path / "a.jsonl")
    other = draw_pictures(tmp_path / "other", *NAMES)
    with pytest.raises(ConversationError, match=r'folder \(was "photos", now "other"\)'):
        ask(other, tmp_path / "a.jsonl")


def test_a_folder_that_was_moved_with_its_output_goes_on(folder, tmp_path):
    ask(folder, folder / "a.jsonl")
    folder.rename(tmp_path / "moved")
    assert ask(tmp_path / "moved", tmp_path / "moved" / "a.jsonl")[0] == []


# --- what is left alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.settings.json"])
def test_a_file_of_somebody_else_is_never_touched(folder, tmp_path, name, restart):
    (tmp_path / name).write_text('{"file": "1.png"}\n')
    out = tmp_path / name.removesuffix(".settings.json")
    with pytest.raises(ConversationError, match="is not from an earlier run") as raised:
        ask(folder, out, restart=restart)
    assert (tmp_path / name).read_text() == '{"file": "1.png"}\n'
    assert str(tmp_path) not in str(raised.value)


def test_an_empty_file_may_be_written(folder, tmp_path):
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).touch()
        assert ask(folder, tmp_path / name)[0] == NAMES


def test_two_processes_do_not_write_the_same_output(folder, tmp_path):
    holding = (
        "import sys, time; from pathlib import Path\n"
        "from gemma3vl_app.folders.journal import Journal\n"
        f"journal = Journal(Path({str(tmp_path / 'a.jsonl')!r}), {{}})\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConversationError, match="being written by another batch"):
            ask(folder, tmp_path / "a.jsonl")
        other.stdin.close()
    assert ask(folder, tmp_path / "a.jsonl")[0] == NAMES


@pytest.mark.skipif(os.name == "nt", reason="an open file is not deleted there")
@pytest.mark.parametrize("out", ["a.jsonl", "a.csv", "sidecars"])
def test_no_lock_stays_behind_however_a_run_ends(folder, tmp_path, out):
    out = out if out == "sidecars" else tmp_path / out
    ask(folder, out)
    with pytest.raises(ConversationError):
        ask(folder, out, prompt="Why?")
    assert [path for path in tmp_path.rglob("*") if path.suffix == ".lock"] == []


@pytest.mark.skipif(os.name == "nt", reason="an open file is not deleted there")
def test_a_lock_that_is_deleted_or_was_left_behind_keeps_its_meaning(tmp_path):
    path, lock = tmp_path / "a.jsonl", tmp_path / ".a.jsonl.lock"
    lock.touch()  # by a run that was killed
    first = journal.Journal(path, {})
    first.close()
    second = journal.Journal(path, {})
    first.close()  # again, and it is not its lock any more
    assert lock.exists()
    with pytest.raises(ConversationError, match="being written by another batch"):
        journal.Journal(path, {})
    second.close()
    assert not lock.exists()


def test_settings_that_are_known_early_are_compared_early(folder, tmp_path):
    ask(folder, tmp_path / "a.jsonl")
    known = {"prompt": "What?", "crops": "auto", "schema": None, "sampling": Greedy()}
    early = partial(check_batch, folder, out=tmp_path / "a.jsonl", **known)
    early()
    early(model={"name": "scripted"})
    for changed in ({"crops": "off"}, {"model": {"name": "other"}}, {"sampling": Sample(seed=1)}):
        with pytest.raises(ConversationError, match="was begun with other settings"):
            early(**changed)
        early(**changed, restart=True)


def test_a_full_disk_ends_the_run_and_leaves_no_half_line(folder, tmp_path, monkeypatch):
    out = tmp_path / "a.jsonl"
    real, room = os.write, [250]

    def write(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(file, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(journal.os, "write", write)
    backend = NamingBackend(seconds={"2.png": 0.1, "3.png": 0.2})
    with pytest.raises(ConversationError, match="No space left on device") as raised:
        ask(folder, out, backend)
    assert str(tmp_path) not in str(raised.value)
    monkeypatch.undo()
    assert out.read_bytes().endswith(b"}\n")
    assert [line["file"] for line in lines(out)] == ["1.png"]
    assert ask(folder, out)[0] == ["2.png", "3.png"]


# --- CSV ------------------------------------------------------------------------------------------


def test_a_table_has_a_row_for_each_picture(folder, tmp_path):
    (folder / "2.png").write_bytes(b"no picture")
    ask(folder, tmp_path / "a.csv")
    header, first, second, _ = rows(tmp_path / "a.csv")
    assert header == ["file", "text", "finish_reason", "error"]
    assert first == ["1.png", "This is 1.png.", "stop", ""]
    assert second[:3] == ["2.png", "", ""]
    assert "not a picture" in second[3]


def test_values_of_a_schema_are_columns(folder, tmp_path):
    schema = {"type": "object", "properties": {name: {} for name in ("n", "file", "list", "yes")}}
    value = {"list": [1, "ä"], "n": -1.5, "file": None, "yes": True}
    backend = NamingBackend(answers={n: Answer(json.dumps(value), "stop") for n in NAMES})
    ask(folder, tmp_path / "a.csv", backend, schema=schema)
    header, first, *_ = rows(tmp_path / "a.csv")
    assert header == ["file", "n", "value.file", "list", "yes", "finish_reason", "error"]
    assert first == ["1.png", "-1.5", "", '[1, "ä"]', "true", "stop", ""]


def test_a_value_that_is_no_object_is_json_in_one_column(folder, tmp_path):
    backend = NamingBackend(answers={n: Answer('["a", 1]', "stop") for n in NAMES})
    ask(folder, tmp_path / "a.csv", backend, schema={"type": "array"})
    header, first, *_ = rows(tmp_path / "a.csv")
    assert (header[1], first[1]) == ("value", '["a", 1]')


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_a_formula(folder, tmp_path, start):
    draw_pictures(folder, f"{start}1.png")
    said = Answer(f'{start}HYPERLINK("http://x")', "stop")
    ask(folder, tmp_path / "a.csv", NamingBackend(answers={"1.png": said}))
    by_name = {row[0]: row[1] for row in rows(tmp_path / "a.csv")}
    assert f"'{start}1.png" in by_name
    assert by_name["1.png"] == f"'{said.text}"


# --- sidecars -------------------------------------------------------------------------------------


def test_each_picture_gets_a_file_beside_it(tmp_path):
    folder = draw_pictures(tmp_path / "photos", "a.png", "inner/b.png")
    ask(folder, "sidecars", recursive=True)
    assert (folder / "a.png.txt").read_text() == "This is a.png.\n"
    assert (folder / "inner" / "b.png.txt").read_text() == "This is b.png.\n"
    assert ask(folder, "sidecars", recursive=True)[0] == []


def test_with_a_schema_it_is_json_and_a_failure_has_none(folder):
    (folder / "2.png").write_bytes(b"no picture")
    ask(folder, "sidecars", schema=SCHEMA)
    assert json.loads((folder / "1.png.json").read_text()) == {"name": "1.png"}
    assert not (folder / "2.png.json").exists()


def test_a_file_that_somebody_else_put_there_is_not_overwritten(folder):
    (folder / "2.png.txt").write_text("Mine.")
    asked, report = ask(folder, "sidecars")
    assert asked == ["1.png", "3.png"]
    assert (folder / "2.png.txt").read_text() == "Mine."
    assert "'2.png.txt' already" in report.failed[0].error
    (folder / "2.png.txt").unlink()
    assert ask(folder, "sidecars", retry_failed=True)[0] == ["2.png"]


def test_a_deleted_sidecar_is_written_again_and_an_edited_one_stays(folder):
    ask(folder, "sidecars")
    (folder / "1.png.txt").unlink()
    (folder / "2.png.txt").write_text("Better.")
    assert ask(folder, "sidecars")[0] == []
    assert (folder / "1.png.txt").read_text() == "This is 1.png.\n"
    assert (folder / "2.png.txt").read_text() == "Better."


def test_a_restart_removes_what_was_written_but_not_what_was_edited(folder):
    ask(folder, "sidecars")
    (folder / "2.png.txt").write_text("Better.")
    _, report = ask(folder, "sidecars", schema=SCHEMA, restart=True)
    assert not report.failed
    assert sorted(path.name for path in folder.glob("*.txt")) == ["2.png.txt"]
    assert len(list(folder.glob("*.png.json"))) == 3


def test_a_name_that_is_too_long_for_a_sidecar_is_a_failure_of_its_own(folder):
    name = "a" * 250 + ".png"
    os.link(folder / "1.png", folder / name)
    asked, report = ask(folder, "sidecars")
    assert asked == NAMES
    assert "cannot be written beside" in report.failed[0].error


def test_what_only_ran_in_memory_leaves_no_file(folder):
    gv.batch(ScriptedBackend(), folder, prompt="What?")
    assert sorted(path.name for path in folder.iterdir()) == NAMES
