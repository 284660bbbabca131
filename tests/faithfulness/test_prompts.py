"""Prompts are always the same, and a person's own are read or refused in words."""

import json

import pytest

from gemma3vl_app.errors import PictureError, VerificationError
from gemma3vl_app.faithfulness.prompts import built_in, drawn_picture, own_prompts


def test_the_built_in_prompts_are_the_same_each_time():
    assert built_in(sees=True, window_tokens=32) == built_in(sees=True, window_tokens=32)
    assert drawn_picture(1, 90, 60).sha256 != drawn_picture(2, 90, 60).sha256


def test_a_model_that_does_not_see_gets_no_picture():
    prompts = built_in(sees=False, window_tokens=32)
    assert not any(prompt.conversation.pictures for prompt in prompts)
    assert prompts[-1].name == "past the window"


def test_lines_are_questions_or_turns(tmp_path):
    file = tmp_path / "own.txt"
    turns = ["Hello?", "Hi.", "Who are you?"]
    file.write_text(f"What is this?\n\n{json.dumps(turns)}\n", encoding="utf-8")
    one, several = own_prompts(file, None)
    assert [message.text for message in one.conversation.messages] == ["What is this?"]
    assert [message.text for message in several.conversation.messages] == turns
    assert [message.role for message in several.conversation.messages] == [
        "user",
        "assistant",
        "user",
    ]


def test_each_picture_is_asked_about_with_crops_off_and_on(shown, questions):
    prompts = own_prompts(questions, shown)
    assert [prompt.crops for prompt in prompts] == ["off", "on"]
    assert [prompt.conversation.pictures[0].name for prompt in prompts] == ["wide.png"] * 2
    assert prompts[0].conversation.messages[0].text == "Name three colours of the rainbow."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\n", "no prompt"),
        ("fine\n[1, 2", r"Line 2 .* JSON"),
        ('["one", "two"]', "Line 1 .* turns"),
        ("[1]", "turns"),
        ("word\n" * 65, "65 prompts are too many"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(tmp_path, text, said):
    file = tmp_path / "own.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(VerificationError, match=said):
        own_prompts(file, None)


def test_a_mark_at_the_beginning_of_a_file_is_no_part_of_the_first_prompt(tmp_path):
    file = tmp_path / "own.txt"
    file.write_text('["Hello?"]\n', encoding="utf-8-sig")
    (prompt,) = own_prompts(file, None)
    assert prompt.conversation.messages[0].text == "Hello?"


def test_too_many_pictures_are_refused_before_one_is_opened(tmp_path):
    for number in range(33):  # twice as many prompts: crops off, and on
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(VerificationError, match="66 prompts are too many"):
        own_prompts(None, tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "own.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VerificationError, match="UTF-8"):
        own_prompts(file, None)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(PictureError):
        own_prompts(None, tmp_path)
