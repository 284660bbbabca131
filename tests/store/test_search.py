# ruff: noqa: RUF001 - letters of many scripts
"""Search finds words whatever their case and script, and takes nothing for a pattern."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma3vl_app.store.words import find, fold, plain, query_words, snippet
from tests.store.talks import talk


def found(store, query, **page):
    return [each.entry.title for each in store.search("anna", query, **page)]


@pytest.mark.parametrize(
    ("said", "query", "matched"),
    [
        ("Which clock is OLDER?", "older", "OLDER"),
        ("Die Straße nach Köln", "STRASSE", "Straße"),
        ("Ein Fußball", "ussb", "ußb"),
        ("Ένας Σκύλος", "σκύλοσ", "Σκύλος"),
        ("Ένας σκύλος", "ΣΚΎΛΟΣ", "σκύλος"),
        ("Москва слезам не верит", "МОСКВА", "Москва"),
        ("ISPARTA ve İSTANBUL", "istanbul", "İSTANBUL"),
        ("ısparta", "ISPARTA", "ısparta"),
        ("Where is the cafe\u0301?", "CAFÉ", "cafe\u0301"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "width", "ｗｉｄｔｈ"),
        ("ｶﾞﾗｽの色", "ガラス", "ｶﾞﾗｽ"),
        ("这个时钟更老吗", "时钟", "时钟"),
        ("이 시계는 오래되었다", "시계", "시계"),
        ("ما هو اللون؟", "اللون", "اللون"),
        ("नमस्ते दुनिया", "दुनिया", "दुनिया"),
        ("the ﬁrst ﬂower", "first", "ﬁrst"),
        ("Two 👩‍👩‍👧 here", "👩‍👩‍👧", "👩‍👩‍👧"),
    ],
)
def test_words_are_found_in_any_language(store, said, query, matched):
    store.create("anna", talk("Title", f"So: {said} Yes."))
    store.create("anna", talk("Other", "Nothing of that kind"))
    (hit,) = store.search("anna", query)
    assert hit.snippet[hit.start : hit.end] == matched
    assert plain(said) in hit.snippet


@pytest.mark.parametrize("sign", ["%", "_", "'", '"', "\\", "*", "?", "--", "100%", "a_b", "[a-z]"])
def test_signs_are_signs(store, sign):
    store.create("anna", talk("with", f"It says {sign} there"))
    store.create("anna", talk("without", "It says a.b and 100 there"))
    assert found(store, sign) == ["with"]


def test_all_words_must_occur_anywhere_in_the_conversation(store):
    store.create("anna", talk("About clocks", "One is red.", "And?", "The other is blue."))
    store.create("anna", talk("About houses", "One is red."))
    assert found(store, "red one") == ["About houses", "About clocks"]
    assert found(store, "RED clocks blue") == ["About clocks"]
    assert found(store, "red green") == []


def test_titles_are_searched_too(store):
    entry = store.create("anna", talk("Hello", "Good day"), title="My Holidays in Rome")
    (hit,) = store.search("anna", "holi")
    assert hit.entry == entry
    assert (hit.snippet, hit.snippet[hit.start : hit.end]) == ("My Holidays in Rome", "Holi")
    assert found(store, "rome day") == ["My Holidays in Rome"]


def test_all_branches_and_changed_texts_are_searched(store):
    entry = store.create("anna", talk("Hello", "Red"))
    store.save("anna", entry.id, talk("Hello", "Green"))
    assert (found(store, "red"), found(store, "green")) == ([], ["Hello"])


def test_what_is_found_comes_in_the_order_of_the_list_and_in_pages(store):
    ids = [store.create("anna", talk(f"clock {number}")).id for number in range(5)]
    store.pin("anna", ids[1])
    assert found(store, "clock", limit=3) == ["clock 1", "clock 4", "clock 3"]
    assert found(store, "clock", offset=3) == ["clock 2", "clock 0"]


def test_no_words_find_nothing(store):
    store.create("anna", talk("Hello"))
    assert found(store, "") == found(store, " \n\0\ud800") == []


def test_a_snippet_is_one_short_plain_line(store):
    store.create("anna", talk("x", "word " * 100 + "<b>\x1b[1m\nNeedle\0</b>" + " word" * 100))
    (hit,) = store.search("anna", "needle")
    assert hit.snippet[hit.start : hit.end] == "Needle"
    assert len(hit.snippet) < 130
    assert hit.snippet.startswith("…") and hit.snippet.endswith("…")
    assert plain(hit.snippet) == hit.snippet


def test_a_text_with_a_zero_in_it_is_searched_behind_it(store):
    store.create("anna", talk("zero", "before\0after"))
    assert found(store, "after") == ["zero"]


def test_long_queries_are_cut(store):
    assert len(query_words("a b c " * 10**6)) < 100


@given(st.text(), st.text(min_size=1), st.text())
def test_a_word_is_found_where_it_stands(before, word, after):
    text = plain(f"{before} {word} {after}")
    for each in query_words(word):
        assert each in fold(text)
        line, start, end = snippet(text, each)
        assert 0 <= start <= end <= len(line)
        place = find(text, each)
        assert place is None or each in fold(text[slice(*place)])
