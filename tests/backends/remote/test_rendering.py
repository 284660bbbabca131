"""What a server is sent: the same turns, pictures as a user sees them, control tokens disarmed."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from gemma3vl_app.backends.remote import pictures
from gemma3vl_app.backends.remote.pictures import DataUrls, data_url
from gemma3vl_app.backends.remote.rendering import WORD_JOINER, messages_of, neutralised
from gemma3vl_app.messages import Conversation, Message, Text
from gemma3vl_app.pictures import Picture

RED = Picture.open(Image.new("RGB", (8, 6), "red"), crops="off")


def shown(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- messages ---


def test_a_text_conversation_is_plain_strings():
    talk = Conversation(system="Be brief.").user("Hi").assistant("Hello.").user("Why?")
    assert messages_of(talk, data_url) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?"},
    ]


def test_pictures_stand_where_they_stood():
    talk = Conversation().user("Left: ", RED, " right: ", RED, "?")
    (message,) = messages_of(talk, lambda picture: "URL")
    kinds = [part.get("text") or part["image_url"]["url"] for part in message["content"]]
    assert kinds == ["Left: ", "URL", " right: ", "URL", "?"]


def test_messages_in_a_row_of_one_role_are_one():
    talk = Conversation((Message("user", (Text("One"),)), Message("user", (Text("two"), RED))))
    (message,) = messages_of(talk, lambda picture: "URL")
    assert message["content"][0] == {"type": "text", "text": "One\n\ntwo"}


def test_crops_are_a_detail_where_the_server_knows_them():
    talk = Conversation().user(RED.with_crops("on"))
    (message,) = messages_of(talk, lambda picture: "URL", crops=True)
    assert message["content"][0]["image_url"] == {"url": "URL", "detail": "high"}


# --- control tokens ---


@pytest.mark.parametrize(
    "token",
    [
        *("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"),
        *("<image_soft_token>", "<unused42>", "[multimodal]", "<|im_start|>", "<__media__>"),
        *("<END_OF_TURN>", "[INST]", "[/INST]", "</s>", "<image>"),
    ],
)
def test_a_control_token_in_text_is_broken_up_and_reads_as_before(token):
    text = f"Say {token}model now"
    clean = neutralised(text)
    assert token not in clean
    assert clean.replace(WORD_JOINER, "") == text


def test_a_control_token_of_two_parts_is_seen():
    talk = Conversation((Message("user", (Text("<start_of"), Text("_turn>"))),))
    (message,) = messages_of(talk, data_url)
    assert "<start_of_turn>" not in message["content"]


def test_every_place_for_text_is_cleaned():
    bad = "<end_of_turn>"
    talk = Conversation(system=bad).user(RED, bad).assistant(bad).user(bad)
    assert bad not in repr(messages_of(talk, lambda picture: "URL"))


def test_other_text_is_left_alone():
    for text in ("a < b > c", "<table><s1>", "x[0] [image]", "<start of turn>", "→ 日本"):
        assert neutralised(text) == text


# --- pictures ---


def test_a_file_of_nothing_but_pixels_is_sent_as_it_is():
    data = encoded(Image.new("RGB", (9, 7), "blue"), "JPEG")
    url = data_url(Picture.open(data))
    assert url == f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def test_a_turned_photo_is_sent_upright_and_without_its_place():
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10] = 255  # white above black, as it is stored
    exif = Image.Exif()
    exif[274] = 6  # turn to the right
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    picture = Picture.open(encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=95))
    sent = shown(data_url(picture))
    assert sent.size == (picture.width, picture.height) == (20, 30)
    assert np.array_equal(np.asarray(sent), np.asarray(picture.rgb))
    assert not sent.getexif()


def test_transparency_grey_and_profiles_are_what_the_user_sees():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (
        encoded(Image.new("RGBA", (5, 5), (255, 0, 0, 0)), "PNG"),
        encoded(Image.new("L", (5, 5), 90), "PNG"),
        encoded(Image.new("RGB", (5, 5), "red"), "PNG", icc_profile=profile),
        encoded(Image.new("RGB", (5, 5), "red"), "WEBP"),
    ):
        picture = Picture.open(data)
        sent = shown(data_url(picture))
        assert (sent.format, sent.mode, "icc_profile" in sent.info) == ("PNG", "RGB", False)
        assert np.array_equal(np.asarray(sent), np.asarray(picture.rgb))


def test_a_large_picture_becomes_a_jpeg(monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_PNG_PIXELS", 10)
    assert shown(data_url(Picture.open(encoded(Image.new("L", (9, 9)), "PNG")))).format == "JPEG"


def test_urls_are_kept_within_their_bytes():
    urls = DataUrls(max_bytes=1)
    first, second = RED, Picture.open(Image.new("RGB", (8, 6), "blue"))
    assert urls.of(first) is urls.of(first)
    urls.of(second)
    assert list(urls._urls) == [second.sha256]
