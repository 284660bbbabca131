"""The page's words in all its languages."""

import re

import pytest

from gemma3vl_app.webui.component import asset
from gemma3vl_app.webui.words import (
    CHINESE,
    ENGLISH,
    FRENCH,
    GERMAN,
    LANGUAGES,
    words_for,
)


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
        *("part_logits", "question", "adapter", "why_attention"),
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_filled_in_is_the_same_in_every_language(language):
    for key, text in LANGUAGES[language].items():
        assert set(re.findall(r"{\w*}", text)) == set(re.findall(r"{\w*}", ENGLISH[key])), key


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("conversation.js", "copy"),
        ("composer.js", "attach"),
        ("shelf.js", "rename"),
        ("models.js", "use"),
    ],
)
def test_the_scripts_ask_for_words_that_there_are(script, word):
    asked = set(re.findall(r'(?:say|button|plain)\("(\w+)"', asset(script)))
    assert asked <= ENGLISH.keys()
    assert word in asked


@pytest.mark.parametrize(
    ("accepted", "words"),
    [
        ("de-AT,de;q=0.9,en;q=0.8", GERMAN),
        ("en;q=0.5,fr", FRENCH),
        ("zh-TW", CHINESE),
        ("xx,yy;q=0.3", ENGLISH),
        ("de;q=broken", ENGLISH),
        ("", ENGLISH),
    ],
)
def test_a_browser_gets_the_language_it_likes_best(accepted, words):
    assert words_for(accepted) is words
