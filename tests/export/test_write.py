"""An export is written whole or not at all, and takes nobody else's place."""

import os
from pathlib import Path

import pytest

from gemma3vl_app.errors import ConversationError
from gemma3vl_app.export import export
from gemma3vl_app.export.write import Document, write
from gemma3vl_app.transcript import ROOT, Transcript
from tests.export.chats import EVERYDAY, RED, hostile

OLD = Document("old", {"01-red.png": b"old"})
NEW = Document("new", {"01-red.png": b"new", "02-blue.png": b"blue"})


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_file_and_its_pictures_are_written_and_nothing_else(tmp_path):
    done = write(tmp_path / "a.md", NEW, overwrite=False)
    assert (done.file, done.folder, done.pictures) == (
        tmp_path / "a.md",
        tmp_path / "a-pictures",
        2,
    )
    assert tree(tmp_path) == {
        "a.md": b"new",
        "a-pictures/01-red.png": b"new",
        "a-pictures/02-blue.png": b"blue",
    }
    assert sorted(os.listdir(tmp_path)) == ["a-pictures", "a.md"]


def test_an_export_without_pictures_has_no_folder(tmp_path):
    assert write(tmp_path / "a.md", Document("x"), overwrite=False).folder is None
    assert os.listdir(tmp_path) == ["a.md"]


@pytest.mark.parametrize("there", ["a.md", "a-pictures/01-red.png"])
def test_what_exists_is_not_overwritten_unless_asked_for(tmp_path, there):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_bytes(b"mine")
    with pytest.raises(ConversationError, match="exists already"):
        write(tmp_path / "a.md", NEW, overwrite=False)
    assert tree(tmp_path) == {there: b"mine"}
    write(tmp_path / "a.md", NEW, overwrite=True)
    assert tree(tmp_path)[there] == b"new"


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "a-pictures").mkdir()
    (tmp_path / "a-pictures" / "mine.txt").write_bytes(b"mine")
    for _ in range(2):
        write(tmp_path / "a.md", NEW, overwrite=True)
        assert tree(tmp_path)["a-pictures/mine.txt"] == b"mine"


def test_exports_of_one_chat_share_their_pictures(tmp_path):
    for suffix in ("html", "md", "ipynb", "jsonl"):
        export(EVERYDAY, tmp_path / f"chat.{suffix}")
    assert len(list(tmp_path.iterdir())) == 5
    assert len(list((tmp_path / "chat-pictures").iterdir())) == 2


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("broken", ["os.replace", "rename"])
def test_when_a_step_fails_all_is_as_it_was(tmp_path, monkeypatch, overwrite, broken):
    if overwrite:
        write(tmp_path / "a.md", OLD, overwrite=False)
    before = tree(tmp_path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    renames = Path.rename

    def fail_at_blue(self, target):
        return (
            fail() if Path(target).name in ("02-blue.png", "a-pictures") else renames(self, target)
        )

    with monkeypatch.context() as patch:
        if broken == "os.replace":
            patch.setattr(os, "replace", fail)
        else:
            patch.setattr(Path, "rename", fail_at_blue)
        with pytest.raises(ConversationError, match="No space left"):
            write(tmp_path / "a.md", NEW, overwrite=overwrite)
    assert tree(tmp_path) == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_places_that_cannot_be_written_to_are_one_plain_line(tmp_path):
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "file-pictures").touch()
    (tmp_path / "link-pictures").symlink_to(tmp_path / "folder.md")
    for name in (
        "folder.md",
        "file.md",
        "link.md",
        "no/folder.md",
        "x" * 300 + ".md",
        "nul\0.md",
    ):
        with pytest.raises(ConversationError) as error:
            write(tmp_path / name, NEW, overwrite=True)
        assert "\n" not in str(error.value)
        assert str(tmp_path) not in str(error.value)
    assert tree(tmp_path) == {"file-pictures": b""}


def test_another_kind_of_file_is_refused_with_the_four(tmp_path):
    with pytest.raises(ConversationError, match=r"\.html, \.md, \.ipynb or \.jsonl"):
        export(EVERYDAY, tmp_path / "chat.pdf")
    assert export(EVERYDAY, tmp_path / "CHAT.HTML").file.exists()


def test_an_empty_chat_is_refused(tmp_path):
    with pytest.raises(ConversationError, match="empty"):
        export(Transcript(), tmp_path / "a.html")
    undone = Transcript(EVERYDAY.turns, head=ROOT)
    with pytest.raises(ConversationError, match="branches=True"):
        export(undone, tmp_path / "a.html")
    for suffix in ("html", "md", "ipynb", "jsonl"):
        export(undone, tmp_path / f"a.{suffix}", branches=True)


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("suffix", ["html", "md", "ipynb", "jsonl"])
def test_a_hostile_chat_is_written_as_utf8_under_safe_names(tmp_path, suffix, branches):
    done = export(hostile(), tmp_path / f"a.{suffix}", branches=branches)
    text = done.file.read_text(encoding="utf-8")
    assert "\x1b" not in text and "\x00" not in text
    assert len(text) > 50_000  # all of it
    if done.folder:
        assert done.pictures == len(list(done.folder.iterdir())) > 10
    assert RED.name not in text
