"""Pictures lie in files of their own; a conversation that lost one names it."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gemma3vl_app.errors import StoreError
from gemma3vl_app.pictures import Picture
from gemma3vl_app.store import database
from tests.conversation_file.chats import drawn
from tests.store.talks import picture_names, talk


@pytest.fixture
def entry(store):
    return store.create("anna", talk("Which?", pictures=[drawn(1, "a.png"), drawn(2, "b.png")]))


def file_of(folder, picture):
    return folder / database.PICTURES / hashlib.sha256(picture.data).hexdigest()


def test_a_file_is_named_by_its_bytes_and_stored_once(store, folder, entry):
    store.create("bert", talk("Mine", pictures=[drawn(2, "other.png")]))
    assert set(picture_names(folder)) == {file_of(folder, drawn(n)).name for n in (1, 2)}
    assert file_of(folder, drawn(1)).read_bytes() == drawn(1).data


@pytest.mark.parametrize("harm", ["missing", "cut", "changed"])
def test_a_conversation_with_a_lost_picture_opens_and_names_the_loss(store, folder, entry, harm):
    file = file_of(folder, drawn(1))
    whole = file.read_bytes()
    match harm:
        case "missing":
            file.unlink()
        case "cut":
            file.write_bytes(whole[:-1])
        case "changed":
            file.write_bytes(whole[:-1] + b"!")
    (turn,) = store.load("anna", entry.id).turns
    assert turn.message.pictures == (drawn(2),)
    assert turn.message.text == "[The picture 'a.png' is lost.]\nWhich?"
    file.write_bytes(whole)
    (turn,) = store.load("anna", entry.id).turns
    assert turn.message.pictures == (drawn(1), drawn(2))


def test_a_conversation_with_a_lost_picture_can_be_gone_on_with(store, folder, entry):
    file_of(folder, drawn(1)).unlink()
    transcript = store.load("anna", entry.id)
    store.save("anna", entry.id, transcript)
    assert store.load("anna", entry.id) == transcript
    assert store.entry("anna", entry.id).pictures == 1


def test_a_save_writes_a_lost_file_again_where_the_chat_still_has_the_picture(store, folder, entry):
    transcript = store.load("anna", entry.id)
    file_of(folder, drawn(1)).unlink()
    store.save("anna", entry.id, transcript)
    assert store.load("anna", entry.id) == transcript


def test_a_damaged_file_is_mended_when_the_picture_comes_again(store, folder, entry):
    file_of(folder, drawn(1)).write_bytes(b"damaged")
    store.create("anna", talk("Again", pictures=[drawn(1)]))
    assert store.load("anna", entry.id).turns[0].message.pictures == (drawn(1), drawn(2))


def test_a_file_that_may_not_be_read_is_no_loss(store, folder, entry, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store._pictures, "read", refuse)
    with pytest.raises(StoreError, match="permissions"):
        store.load("anna", entry.id)


def test_another_owners_file_is_not_given_for_equal_pixels(store, folder):
    """Its metadata (where a photo was taken) are the other owner's."""
    pixels = Image.fromarray(np.full((4, 6, 3), 9, dtype=np.uint8))
    place = PngInfo()
    place.add_text("Comment", "taken at home")
    files = []
    for number, info in enumerate((place, None)):
        path = folder / f"{number}.png"
        pixels.save(path, pnginfo=info)
        files.append(Picture.open(path))
    assert files[0] == files[1]
    store.create("anna", talk("Mine", pictures=[files[0]]))
    entry = store.create("bert", talk("Mine", pictures=[files[1]]))
    assert store.load("bert", entry.id).turns[0].message.pictures[0].data == files[1].data


def test_the_file_is_on_the_disk_before_it_is_named(store, folder, monkeypatch):
    """And it is written while others may use the database."""
    seen = []
    writing = store._database.writing

    def noting():
        seen.append(picture_names(folder))
        return writing()

    monkeypatch.setattr(store._database, "writing", noting)
    store.create("anna", talk("Look", pictures=[drawn(5)]))
    assert seen[0] == [file_of(folder, drawn(5)).name]


def test_pictures_that_are_stored_are_not_hashed_again(store, entry, monkeypatch):
    def refuse(_):
        raise AssertionError("put")

    monkeypatch.setattr(store._pictures, "put", refuse)
    transcript = talk("Which?", "The left.", pictures=[drawn(1, "a.png"), drawn(2, "b.png")])
    store.save("anna", entry.id, transcript)
    assert store.entry("anna", entry.id).turns == 2
