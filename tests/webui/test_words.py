"""The page's words in all its languages."""

import re

import pytest

from gemma3vl_app.webui.conversation_view import asset
from gemma3vl_app.webui.words import ENGLISH, LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_says_everything(language):
    words = LANGUAGES[language]
    assert words.keys() == ENGLISH.keys()
    assert all(text == text.strip() and text for text in words.values())


def test_there_are_five_languages_or_more_and_they_differ():
    assert len(LANGUAGES) >= 5
    same = [
        (language, key)
        for language, words in LANGUAGES.items()
        for key, text in words.items()
        if language != "en" and text == ENGLISH[key]
    ]
    assert {key for _, key in same} <= {
        *("conversation", "conversations", "chat", "versions", "top_k", "top_p", "tokens"),
    }


def test_the_script_asks_for_words_that_there_are():
    asked = set(re.findall(r'(?:say|button)\("(\w+)"', asset("conversation.js")))
    assert asked <= ENGLISH.keys()
    assert "copy" in asked
