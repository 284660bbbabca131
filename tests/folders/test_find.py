"""Which files count as pictures, what they are called, and in which order they come."""

from pathlib import Path

import pytest

from gemma3vl_app.errors import PictureError
from gemma3vl_app.folders.find import find_pictures


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_pictures_come_in_the_order_people_count(tmp_path):
    touch(tmp_path, "IMG_10.jpg", "IMG_9.jpg", "img_1.PNG", "2.webp", "10.gif", "a.jpeg", "b.bmp")
    assert find_pictures(tmp_path).names == (
        *("2.webp", "10.gif", "a.jpeg", "b.bmp", "img_1.PNG", "IMG_9.jpg", "IMG_10.jpg"),
    )


def test_other_kinds_are_counted_and_hidden_files_passed_over(tmp_path):
    touch(tmp_path, "a.png", "notes.txt", "film.mp4", ".hidden.png", ".DS_Store", ".cache/b.png")
    found = find_pictures(tmp_path, recursive=True)
    assert (found.names, found.skipped) == (("a.png",), 2)


def test_sidecars_are_not_counted_as_other_kinds(tmp_path):
    touch(tmp_path, "a.png", "a.png.txt", "a.png.json")
    assert find_pictures(tmp_path).skipped == 0


def test_pictures_that_cannot_be_read_are_not_passed_over_in_silence(tmp_path):
    touch(tmp_path, "scan.TIFF", "phone.heic")
    assert find_pictures(tmp_path).names == ("phone.heic", "scan.TIFF")


def test_inner_folders_are_searched_only_when_asked_for(tmp_path):
    touch(tmp_path, "a.png", "2/b.png", "10/c.png")
    assert find_pictures(tmp_path).names == ("a.png",)
    assert find_pictures(tmp_path, recursive=True).names == ("2/b.png", "10/c.png", "a.png")


def test_a_link_that_leads_back_does_not_lead_round_and_round(tmp_path):
    touch(tmp_path, "a.png", "inner/b.png")
    (tmp_path / "inner" / "up").symlink_to(tmp_path)
    assert find_pictures(tmp_path, recursive=True).names == ("a.png", "inner/b.png")


def test_several_folders_and_files_are_named_below_what_they_share(tmp_path):
    touch(tmp_path, "one/a.png", "two/a.png", "two/b.png")
    found = find_pictures([tmp_path / "one", tmp_path / "two" / "a.png"])
    assert (found.base, found.names) == (tmp_path, ("one/a.png", "two/a.png"))


def test_what_is_given_twice_is_asked_about_once(tmp_path):
    touch(tmp_path, "a.png")
    assert find_pictures([tmp_path, tmp_path / "a.png"]).names == ("a.png",)


def test_a_folder_and_all_its_files_have_the_same_names(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    assert find_pictures(tmp_path) == find_pictures(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "No folder"),
        ("no-such", "'no-such' was not found"),
        ("empty", "no picture in 'empty'"),
        ("texts", "no picture in 'texts', but 1 other file. Pictures are .* with recursive=True"),
        ("texts/a.txt", r"^'a\.txt' is no picture\. Pictures are files that end in [^;]*png"),
    ],
)
def test_nothing_to_ask_about_is_an_error(tmp_path, given, told):
    touch(tmp_path, "texts/a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PictureError, match=told) as raised:
        find_pictures(tmp_path / given if given else [])
    assert str(tmp_path) not in str(raised.value)
