"""Files that the page made go when nobody has asked for them in a day."""

import os
import time

import pytest
from PIL import Image

from gemma3vl_app.pictures import Picture
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.old_files import KEPT_SEC, OldFiles


def make_old(path):
    past = time.time() - KEPT_SEC - 60
    os.utime(path, (past, past))


@pytest.fixture
def folder(tmp_path):
    for name in ("old/a.zip", "mixed/old.png", "mixed/new.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        if "new" not in name:
            make_old(tmp_path / name)
    return tmp_path


def test_old_files_go_with_their_folders_and_new_ones_stay(folder):
    OldFiles([folder, folder / "missing"]).sweep()
    assert [path.name for path in sorted(folder.rglob("*"))] == ["mixed", "new.png"]


def test_it_looks_once_an_hour(folder):
    files = OldFiles([folder])
    files.sweep()
    make_old(folder / "mixed" / "new.png")
    files.sweep()
    assert (folder / "mixed" / "new.png").exists()


def test_a_page_that_is_opened_sweeps_and_what_is_looked_at_stays(tmp_path):
    desk = Desk.set_up(lambda: ScriptedBackend(), tmp_path)
    (export,) = [desk.exports / "x" / "conversation.html"]
    export.parent.mkdir(parents=True)
    export.write_text("said")
    shown = [Picture.open(Image.new("RGB", (4, 4), colour)) for colour in ("red", "blue")]
    red, blue = (tmp_path / desk.pictures.path("c", picture) for picture in shown)
    for path in (export, red, blue):
        make_old(path)
    desk.pictures.path("c", shown[0])  # somebody looks at it
    desk.tab("anna")
    assert (export.exists(), red.exists(), blue.exists()) == (False, True, False)
    assert desk.pictures.path("c", shown[1]) == str(blue) and blue.exists()
