"""What a draft would cost, and which files become pictures."""

import pytest
from PIL import Image

from gemma3vl_app.errors import PictureError
from gemma3vl_app.pictures import Picture
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui.drafts import MOST_PICTURES, DraftPictures, Item
from gemma3vl_app.webui.library import Library
from gemma3vl_app.webui.shown_pictures import ShownPictures
from gemma3vl_app.webui.tab import Tab
from gemma3vl_app.webui.view import Draft, Settings

TALK = "0123"


@pytest.fixture
def shown(tmp_path):
    return ShownPictures(tmp_path / "shown")


@pytest.fixture
def pictures(shown):
    return DraftPictures(shown)


@pytest.fixture
def weigh(shown):
    backend = ScriptedBackend(["Yes."])
    tab = Tab(Library(lambda: backend), shown, lambda: backend, "anna")
    return tab.weigh


@pytest.fixture
def red(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


@pytest.fixture
def paper(tmp_path):
    pages = [Image.new("RGB", (200, 280), colour) for colour in ("white", "yellow")]
    pages[0].save(tmp_path / "paper.pdf", save_all=True, append_images=pages[1:])
    return str(tmp_path / "paper.pdf")


def test_a_file_is_decoded_once_while_it_is_in_the_box(pictures, red, monkeypatch):
    ((_, first),) = pictures.open([red], TALK)
    monkeypatch.setattr(Picture, "open", lambda *args, **kw: pytest.fail("decoded again"))
    ((_, second),) = pictures.open([red], TALK)
    assert second is first


def test_a_picture_that_was_taken_out_is_forgotten(pictures, red):
    pictures.open([red], TALK)
    pictures.open([], TALK)
    assert pictures._known == {}


def test_pages_of_a_pdf_are_files_that_can_be_sent(pictures, paper, red):
    opened = pictures.open([red, paper], TALK)
    assert [picture.name for _, picture in opened] == [
        *("red.png", "paper.pdf, page 1", "paper.pdf, page 2"),
    ]
    again = pictures.open([file for file, _ in opened[1:]], TALK)
    assert [picture for _, picture in again] == [picture for _, picture in opened[1:]]


def test_a_bad_file_does_not_keep_the_others_out(pictures, red, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    opened, error = pictures.open_what_can_be([str(tmp_path / "bad.png"), red], TALK)
    assert [picture.name for _, picture in opened] == ["red.png"]
    assert "bad.png" in error


def test_more_pictures_than_a_message_takes_are_told(pictures, red):
    with pytest.raises(PictureError, match="up to 20 pictures"):
        pictures.open([red] * (MOST_PICTURES + 1), TALK)
    opened, error = pictures.open_what_can_be([red] * (MOST_PICTURES + 1), TALK)
    assert len(opened) == MOST_PICTURES
    assert "up to 20 pictures" in error


def test_a_draft_is_weighed_with_its_pictures_and_words(weigh, red):
    empty = weigh(Draft())
    assert (empty.items, empty.used_tokens) == ((), 0)
    words = weigh(Draft("one two three"))
    both = weigh(Draft("one two three", (red,)))
    (item,) = both.items
    assert (item.name, item.width, item.height) == ("red.png", 30, 20)
    assert both.used_tokens == words.used_tokens + item.tokens
    assert both.used_tokens <= both.context_tokens


def test_a_schema_that_is_no_json_is_told_when_it_is_used(shown):
    backend = ScriptedBackend(["Yes."])
    tab = Tab(Library(lambda: backend), shown, lambda: backend, "anna")
    (view,) = tab.ask(Draft("Hello"), Settings(schema="{"))
    assert "no JSON" in view.line
    assert view.draft == Draft("Hello")
    (view,) = tab.ask(Draft("Hello"), Settings(schema="[1]"))
    assert "JSON object" in view.line
    assert backend.requests == []


@pytest.mark.parametrize(
    ("size", "crops", "is_squashed"),
    [
        ((300, 200), (), False),
        ((400, 200), (), True),
        ((200, 400), (), True),
        ((400, 200), ((0, 0, 200, 200),), False),
    ],
)
def test_long_pictures_are_squashed_where_no_crops_show_their_parts(size, crops, is_squashed):
    assert Item("file", "name", *size, 64, crops).is_squashed is is_squashed
