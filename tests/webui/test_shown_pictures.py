"""Pictures on their way to the page."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from gemma3vl_app.pictures import Picture
from gemma3vl_app.webui.shown_pictures import ShownPictures


def test_a_picture_is_written_once_small_and_without_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    Image.new("RGB", (4000, 1000), "red").save(tmp_path / "a b.jpg", exif=exif)
    picture = Picture.open(tmp_path / "a b.jpg")
    shown = ShownPictures(tmp_path / "shown")
    path = Path(shown.path("c1", picture))
    assert path.name.endswith("-a-b.jpg")
    assert b"where I live" not in path.read_bytes()
    assert max(Image.open(path).size) <= 1600
    written = path.stat().st_ino
    assert shown.path("c1", picture) == str(path)
    assert path.stat().st_ino == written


def test_names_from_outside_stay_in_the_folder(tmp_path):
    picture = Picture.open(Image.new("RGB", (4, 4)), name="../../etc/passwd")
    path = Path(ShownPictures(tmp_path).path("c1", picture))
    assert path.parent == tmp_path / "c1"
    assert path.suffix == ".png"
    picture = replace(picture, name="../../etc/passwd")  # as nobody has cleaned it
    path = Path(ShownPictures(tmp_path / "b").path("c1", picture))
    assert path.parent == tmp_path / "b" / "c1" and path.exists()


def test_they_go_with_their_conversation_and_come_back_when_wanted(tmp_path):
    picture = Picture.open(Image.new("RGB", (4, 4)))
    shown = ShownPictures(tmp_path)
    path, other = Path(shown.path("c1", picture)), Path(shown.path("c2", picture))
    shown.forget("c1")
    assert not path.exists()
    assert other.exists()
    assert Path(shown.path("c1", picture)).exists()
