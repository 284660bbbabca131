"""What the page says, in the languages it speaks; English is what all others are measured by.

Errors, and what a model says of itself, stay English: they come from below the page.
"""

from __future__ import annotations

from gemma3vl_app.webui.words.chinese import CHINESE
from gemma3vl_app.webui.words.english import ENGLISH
from gemma3vl_app.webui.words.french import FRENCH
from gemma3vl_app.webui.words.german import GERMAN
from gemma3vl_app.webui.words.japanese import JAPANESE
from gemma3vl_app.webui.words.keys import Words
from gemma3vl_app.webui.words.spanish import SPANISH

__all__ = [
    "CHINESE",
    "ENGLISH",
    "FRENCH",
    "GERMAN",
    "JAPANESE",
    "LANGUAGES",
    "SPANISH",
    "Words",
    "texts_of",
    "words_for",
]

LANGUAGES: dict[str, Words] = {
    "en": ENGLISH,
    "de": GERMAN,
    "fr": FRENCH,
    "es": SPANISH,
    "zh-CN": CHINESE,
    "ja": JAPANESE,
}


def texts_of(words: Words) -> dict[str, str]:
    """Return words as a plain mapping."""
    return {key: str(text) for key, text in words.items()}


def words_for(accepted: str) -> Words:
    """Return the words of the language that a browser likes best, of those that there are.

    `accepted` is its Accept-Language header: "de-AT,de;q=0.9,en;q=0.8".
    """
    ranked = []
    for part in accepted.split(","):
        name, _, weight = part.partition(";q=")
        try:
            ranked.append((float(weight or 1), name.strip().lower()))
        except ValueError:
            continue
    known = {name.split("-")[0]: words for name, words in LANGUAGES.items()}
    for _, name in sorted(ranked, key=lambda each: -each[0]):
        if name.split("-")[0] in known:
            return known[name.split("-")[0]]
    return ENGLISH
