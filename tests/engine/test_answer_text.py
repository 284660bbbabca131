"""Stop strings: found wherever tokens are cut, never shown, and nothing else held back for good."""

from hypothesis import given
from hypothesis import strategies as st

from gemma3vl_app.engine.answer_text import AnswerText

LETTERS = st.text("ab.\n", min_size=0, max_size=30)


def test_text_flows_at_once_when_no_stop_string_may_begin():
    text = AnswerText(["###"])
    assert text.push("Hello ") == "Hello "
    assert text.push("wor#") == "wor"
    assert text.push("ld") == "#ld"
    assert not text.stopped


def test_a_stop_string_across_tokens_ends_the_text_before_it():
    text = AnswerText(["STOP"])
    assert [text.push(piece) for piece in ("go S", "TO", "P now")] == ["go ", "", ""]
    assert text.stopped
    assert text.finish() == ""
    assert text.text == "go "


def test_the_earliest_of_several_stop_strings_counts():
    text = AnswerText(["b", "ab"])
    text.push("xab")
    assert text.text == "x"


@given(
    LETTERS,
    st.lists(st.integers(1, 5), max_size=30),
    st.lists(st.text("ab.\n", min_size=1, max_size=4), max_size=3),
)
def test_however_the_text_is_cut_it_ends_before_the_first_stop_string(whole, cuts, stop):
    text, rest = AnswerText(stop), whole
    for cut in [*cuts, len(whole)]:
        text.push(rest[:cut])
        rest = rest[cut:]
        if text.stopped:
            break
    text.finish()
    assert whole.startswith(text.text)
    assert not any(each in text.text for each in stop)
    assert text.stopped == any(each in whole for each in stop)
    if not text.stopped:
        assert text.text == whole
