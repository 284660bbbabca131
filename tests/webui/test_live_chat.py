"""A conversation that answers on its own, and whoever watches it."""

import threading
import time

import pytest

from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError, EngineError, StoreError
from gemma3vl_app.generation import Answer
from gemma3vl_app.stream import Stream
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.webui.live_chat import LiveChat

SLOW = {"seconds_per_chunk": 0.02}


def live_chat(backend, **options):
    return LiveChat(Chat(backend), **options)


def ask(text):
    return lambda chat: chat.stream(text)


def wait_until(holds, seconds=10):
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds
        time.sleep(0.005)


def texts(moment):
    return [message.text for message in moment.messages]


def test_whoever_watches_sees_the_answer_grow_to_its_end():
    live = live_chat(ScriptedBackend(["One ", "two ", "three."], seconds_per_chunk=0.1))
    live.begin(ask("Count"))
    moments = list(live.watch())
    assert [texts(moment) for moment in moments[:1]] == [["Count"]]
    said = [moment.said for moment in moments]
    assert len(set(said)) >= 3
    last = moments[-1]
    assert texts(last) == ["Count", "One two three."]
    assert not last.answering
    assert last.answer.usage.completion_tokens > 0
    assert "tokens/s" in last.line


def test_a_second_watcher_comes_in_the_middle_and_sees_the_same_end():
    live = live_chat(ScriptedBackend(["word "] * 20, **SLOW))
    live.begin(ask("Go"))
    first = live.watch()
    while not next(first).said:
        pass
    second = live.watch()
    seen = next(second)
    assert seen.answering
    assert seen.said
    assert list(first)[-1] == list(second)[-1]


def test_it_answers_to_the_end_while_nobody_watches_for_less_than_the_grace():
    live = live_chat(ScriptedBackend(["word "] * 20, **SLOW), grace_sec=5)
    live.begin(ask("Go"))
    watching = live.watch()
    next(watching)
    watching.close()  # the tab is gone
    wait_until(lambda: not live.moment.answering)
    assert texts(live.moment)[-1].split() == ["word"] * 20


def test_an_answer_that_nobody_comes_back_to_is_ended_and_kept():
    backend = ScriptedBackend(["word "] * 1000, **SLOW)
    live = live_chat(backend, grace_sec=0.1)
    live.begin(ask("Go"))
    watching = live.watch()
    while not next(watching).said:
        pass
    watching.close()
    wait_until(lambda: not backend.running)
    wait_until(lambda: not live.moment.answering)
    assert 1 <= len(texts(live.moment)[-1].split()) < 500


def test_who_comes_back_in_time_keeps_the_answer_alive():
    backend = ScriptedBackend(["word "] * 60, **SLOW)
    live = live_chat(backend, grace_sec=0.3)
    live.begin(ask("Go"))
    watching = live.watch()
    next(watching)
    watching.close()
    back = list(live.watch())
    assert texts(back[-1])[-1].split() == ["word"] * 60


def test_while_it_answers_nothing_else_begins_or_changes():
    live = live_chat(ScriptedBackend(["word "] * 50, **SLOW))
    live.begin(ask("One"))
    with pytest.raises(ConversationError, match="Still answering"):
        live.begin(ask("Two"))
    with pytest.raises(ConversationError, match="Still answering"):
        live.change(Chat.undo)
    wait_until(lambda: live.moment.said)
    live.stop()
    assert texts(list(live.watch())[-1])[0] == "One"


def test_a_failed_answer_leaves_the_conversation_as_it_was():
    backend = ScriptedBackend(["Fine."])
    live = live_chat(backend)
    live.begin(ask("One"))
    list(live.watch())
    backend._error = EngineError("The engine broke. Try again.")
    writing = live.begin(ask("Two"))
    last = list(live.watch())[-1]
    assert writing.taken_back
    assert texts(last) == ["One", "Fine."]
    assert (last.line, last.is_error) == ("The engine broke. Try again.", True)
    backend._error = None
    live.begin(ask("Three"))
    assert texts(list(live.watch())[-1]) == ["One", "Fine.", "Three", "Fine."]


def test_a_failed_second_try_shows_the_first_answer_again():
    backend = ScriptedBackend(["Fine."])
    live = live_chat(backend)
    live.begin(ask("One"))
    list(live.watch())
    backend._error = EngineError("The engine broke. Try again.")
    live.begin(Chat.regenerate)
    assert texts(list(live.watch())[-1]) == ["One", "Fine."]


def test_a_fault_of_ours_is_not_told_in_detail(caplog):
    backend = ScriptedBackend(error=RuntimeError("secret path"))
    live = live_chat(backend)
    live.begin(ask("One"))
    last = list(live.watch())[-1]
    assert last.is_error
    assert "secret" not in last.line
    assert "secret" in caplog.text


def test_stopped_before_the_first_word_the_question_is_taken_back():
    live = live_chat(ScriptedBackend(["word "] * 10, seconds_per_chunk=0.5))
    writing = live.begin(ask("One"))
    live.stop()
    last = list(live.watch())[-1]
    assert writing.taken_back
    assert last.messages == ()
    assert last.line == "Stopped before the first word."


def test_answers_tried_again_are_versions_to_switch_between():
    backend = ScriptedBackend(["Yes."])
    live = live_chat(backend)
    live.begin(ask("Is it?"))
    list(live.watch())
    backend._chunks = ["No."]
    live.begin(Chat.regenerate)
    assert list(live.watch())[-1].versions == ((0, 1), (1, 2))
    live.change(lambda chat: chat.switch(1, 0))
    assert live.moment.versions == ((0, 1), (0, 2))
    assert texts(live.moment) == ["Is it?", "Yes."]


def test_the_question_is_saved_before_its_answer_and_each_change_after():
    saved = []
    live = live_chat(ScriptedBackend(["word "] * 10, **SLOW), save=saved.append)
    live.begin(ask("One"))
    wait_until(lambda: saved)
    assert [turn.message.text for turn in saved[0].turns] == ["One"]
    list(live.watch())
    wait_until(lambda: len(saved) == 2)
    assert len(saved[-1].turns) == 2
    assert saved[-1].turns[1].generated
    live.change(Chat.undo)
    assert saved[-1].head == -1


def test_whoever_is_told_that_something_was_sent_or_answered_finds_it_saved():
    saved, shown = [], []
    live = live_chat(ScriptedBackend(["Yes."]), save=lambda t: saved.append(len(t.turns)))
    live.begin(ask("One"))
    assert saved  # before it returns
    for moment in live.watch():
        shown.append((moment.answering, saved[-1]))
    assert shown[-1] == (False, 2)


@pytest.mark.parametrize("error", [StoreError("The disk is full."), ZeroDivisionError()])
def test_a_conversation_that_cannot_be_saved_goes_on(error):
    def fail(transcript):
        raise error

    live = live_chat(ScriptedBackend(["Yes."]), save=fail)
    for question in ("One", "Two"):
        live.begin(ask(question))
        *_, last = live.watch()
        assert last.is_error and not last.answering
    assert texts(live.moment) == ["One", "Yes.", "Two", "Yes."]


def test_a_full_disk_is_told_and_the_conversation_goes_on():
    def full(transcript):
        raise StoreError("The conversation cannot be saved: the disk is full.")

    live = live_chat(ScriptedBackend(["Yes."]), save=full)
    live.begin(ask("One"))
    wait_until(lambda: not live.moment.answering and live.moment.is_error)
    assert texts(live.moment) == ["One", "Yes."]
    assert "disk is full" in live.moment.line


def test_a_deleted_conversation_takes_no_more_questions():
    live = LiveChat(Chat(ScriptedBackend(["Yes."])))
    live.close()
    with pytest.raises(ConversationError, match="was deleted"):
        live.begin(lambda chat: chat.stream("Really?"))


def test_a_stopped_answer_that_takes_its_time_holds_nobody_up():
    stream = Stream()  # its producer has not heard of the stop yet
    backend = ScriptedBackend(["Yes."])
    backend.stream = lambda conversation, **options: stream
    live = LiveChat(Chat(backend))
    live.begin(lambda chat: chat.stream("Really?"))
    live.stop()
    started = time.monotonic()
    assert [turn.message.text for turn in live.transcript.turns] == ["Really?"]
    assert time.monotonic() - started < 1
    stream.finish(Answer("Yes.", "cancelled"))


def test_whoever_watches_hears_at_least_once_a_second():
    stream = Stream()
    backend = ScriptedBackend(["Yes."])
    backend.stream = lambda conversation, **options: stream
    live = LiveChat(Chat(backend))
    live.begin(lambda chat: chat.stream("Really?"))
    moments = live.watch()
    assert next(moments) == next(moments)  # nothing is new
    stream.finish(Answer("Yes.", "stop"))
    list(moments)


def test_many_threads_at_once_leave_one_whole_conversation():
    live = live_chat(ScriptedBackend(["Yes."]))
    begun, refused = [], []

    def try_it(number):
        try:
            live.begin(ask(f"q{number}"))
            begun.append(number)
        except ConversationError:
            refused.append(number)

    threads = [threading.Thread(target=try_it, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    list(live.watch())
    said = texts(live.moment)
    assert len(said) == 2 * len(begun)
    assert said[1::2] == ["Yes."] * len(begun)
