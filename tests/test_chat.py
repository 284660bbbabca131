"""The conversation that is kept: turns, stops, corrections, branches."""

import queue
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pydantic
import pytest

from gemma3vl_app import Chat, Conversation, Picture
from gemma3vl_app.chat import _said_tokens
from gemma3vl_app.conversation_file import read_chat
from gemma3vl_app.errors import ConversationError, EngineError, PictureError
from gemma3vl_app.generation import Answer, Greedy, Sample, Token
from gemma3vl_app.stream import Stream
from gemma3vl_app.testing import ScriptedBackend
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES


def roles_and_texts(chat: Chat) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in chat.conversation.messages]


def red() -> np.ndarray:
    return np.full((8, 8, 3), (255, 0, 0), dtype=np.uint8)


def test_turns_are_kept_and_sent_again_with_their_pictures():
    backend = ScriptedBackend()
    chat = Chat(backend, system="Be brief.")
    chat.ask("one", images=[red()])
    chat.ask("two")
    sent = backend.requests[-1].conversation
    assert sent.system == "Be brief."
    assert [message.role for message in sent.messages] == ["user", "assistant", "user"]
    assert len(sent.pictures) == 1


def test_pictures_come_before_the_text_unless_they_are_placed_in_it():
    backend = ScriptedBackend()
    chat, placed = Chat(backend), Picture.open(red())
    chat.ask("after", images=[red()])
    assert [
        type(part).__name__ for part in backend.requests[-1].conversation.messages[0].parts
    ] == [
        "Picture",
        "Text",
    ]
    chat.ask("before", placed, "between")
    assert [
        type(part).__name__ for part in backend.requests[-1].conversation.messages[2].parts
    ] == [
        "Text",
        "Picture",
        "Text",
    ]


def test_one_picture_need_not_stand_in_a_list(tmp_path):
    backend = ScriptedBackend()
    file = tmp_path / "red.png"
    Picture.open(red()).rgb.save(file)
    for alone in (str(file), file, file.read_bytes(), red(), Picture.open(red()), [red()]):
        Chat(backend).ask("?", images=alone)
        assert len(backend.requests[-1].conversation.pictures) == 1


def test_a_stream_that_was_read_leaves_its_answer_in_the_conversation():
    chat = Chat(ScriptedBackend(["A ", "cat."]))
    assert "".join(chunk.text for chunk in chat.stream("What?")) == "A cat."
    assert roles_and_texts(chat) == [("user", "What?"), ("assistant", "A cat.")]


def test_asking_while_an_answer_is_running_is_refused_and_changes_nothing():
    chat = Chat(ScriptedBackend(["a"] * 100, seconds_per_chunk=0.05))
    stream = chat.stream("first")
    with pytest.raises(ConversationError, match="stop"):
        chat.stream("second")
    chat.stop()
    assert stream.answer.finish_reason == "cancelled"
    assert [text for _, text in roles_and_texts(chat)][:1] == ["first"]


def test_what_was_said_before_a_stop_stays():
    chat = Chat(ScriptedBackend(["word "] * 100, seconds_per_chunk=0.02))
    stream = chat.stream("go")
    for chunk in stream:
        if chunk.text:
            break
    chat.stop()
    said = stream.answer.text
    assert said.startswith("word ")
    assert roles_and_texts(chat)[-1] == ("assistant", said)


def test_one_can_ask_again_right_after_stopping():
    chat = Chat(ScriptedBackend(["word "] * 100, seconds_per_chunk=0.02))
    chat.stream("go")
    chat.stop()
    chat.backend = ScriptedBackend()
    assert chat.ask("again").text == "again"


def test_an_interrupted_ask_stops_the_answer(monkeypatch):
    backend = ScriptedBackend(["word "] * 200, seconds_per_chunk=0.02)
    chat = Chat(backend)

    def interrupt(stream):
        raise KeyboardInterrupt

    monkeypatch.setattr(Stream, "answer", property(interrupt))
    with pytest.raises(KeyboardInterrupt):
        chat.ask("go")
    monkeypatch.undo()
    assert chat._running.cancelled
    chat.undo()
    assert backend.running == 0


def test_stop_without_an_answer_does_nothing():
    Chat(ScriptedBackend()).stop()


def test_a_picture_that_cannot_be_read_leaves_the_conversation_as_it_was():
    chat = Chat(ScriptedBackend())
    chat.ask("one")
    with pytest.raises(PictureError):
        chat.ask("two", images=[b"not a picture"])
    assert len(chat.conversation.messages) == 2


def test_a_refused_request_leaves_the_conversation_as_it_was():
    chat = Chat(ScriptedBackend())
    chat.ask("one")
    with pytest.raises(ConversationError):
        chat.ask("two", max_new_tokens=0)
    assert len(chat.conversation.messages) == 2


def test_a_failed_answer_keeps_the_question_and_can_be_tried_again():
    backend = ScriptedBackend(["half "], error=EngineError("It broke."))
    chat = Chat(backend)
    with pytest.raises(EngineError):
        chat.ask("why?")
    assert roles_and_texts(chat) == [("user", "why?")]
    chat.backend = ScriptedBackend(["whole"])
    assert chat.regenerate().answer.text == "whole"


def test_undo_goes_back_before_the_last_question():
    chat = Chat(ScriptedBackend())
    chat.ask("one")
    chat.ask("two")
    chat.undo()
    assert [text for _, text in roles_and_texts(chat)] == ["one", "one"]
    chat.undo()
    assert roles_and_texts(chat) == []
    with pytest.raises(ConversationError, match="nothing to undo"):
        chat.undo()


def test_regenerate_keeps_the_first_answer_as_a_version():
    chat = Chat(ScriptedBackend(["first"]))
    chat.ask("q")
    chat.backend = ScriptedBackend(["second"])
    assert chat.regenerate().answer.text == "second"
    assert [message.text for message in chat.versions(1)] == ["first", "second"]
    chat.switch(1, 0)
    assert roles_and_texts(chat)[-1] == ("assistant", "first")


def test_edit_keeps_the_pictures_and_the_old_branch():
    chat = Chat(ScriptedBackend())
    chat.ask("what is it?", images=[red()])
    chat.ask("sure?")
    assert chat.edit(0, "where is it?").answer.text == "where is it?"
    assert len(chat.conversation.messages) == 2
    assert len(chat.conversation.pictures) == 1
    chat.switch(0, 0)
    assert [text for _, text in roles_and_texts(chat)][2:] == ["sure?", "sure?"]


def test_an_edit_that_is_refused_changes_nothing():
    chat = Chat(ScriptedBackend())
    chat.ask("one")
    before = chat.conversation
    with pytest.raises(ConversationError):
        chat.edit(0, "two", max_new_tokens=0)
    with pytest.raises(ConversationError, match="assistant"):
        chat.edit(1, "two")
    with pytest.raises(ConversationError, match="no message 7"):
        chat.edit(7, "two")
    assert chat.conversation == before
    assert len(chat.versions(0)) == 1


def test_branch_goes_on_from_an_earlier_message():
    chat = Chat(ScriptedBackend())
    chat.ask("one")
    chat.ask("two")
    chat.branch(1)
    chat.ask("three")
    assert [text for _, text in roles_and_texts(chat)] == ["one", "one", "three", "three"]
    assert [message.text for message in chat.versions(2)] == ["two", "three"]


def test_resume_goes_on_with_the_last_answer():
    backend = ScriptedBackend(["Once ", "upon "])
    chat = Chat(backend)
    chat.ask("a story")
    chat.backend = more = ScriptedBackend(["a time."])
    assert chat.resume().answer.text == "a time."
    assert more.requests[0].conversation.messages[-1].text == "Once upon "
    assert roles_and_texts(chat)[-1] == ("assistant", "Once upon a time.")


def test_a_chat_can_start_from_a_conversation():
    chat = Chat(ScriptedBackend(), conversation=Conversation(system="S").user("a").assistant("b"))
    chat.ask("c")
    assert [text for _, text in roles_and_texts(chat)] == ["a", "b", "c", "c"]
    assert chat.conversation.system == "S"
    with pytest.raises(ConversationError, match="either"):
        Chat(ScriptedBackend(), system="x", conversation=Conversation())


def test_the_chats_own_sampling_and_session_go_with_every_request():
    backend = ScriptedBackend()
    chat = Chat(backend, sampling=Greedy(), session="salt")
    chat.ask("one")
    chat.preview("two")
    assert (backend.requests[0].sampling, backend.requests[0].session) == (Greedy(), "salt")


# --- how answers came about, and saving -----------------------------------------------------------


def test_a_drawn_answer_gets_a_seed_where_none_was_given():
    backend = ScriptedBackend()
    chat = Chat(backend, sampling=Sample(temperature=0.5))
    chat.ask("one")
    chat.ask("two")
    chat.ask("three", sampling=Sample(seed=3))
    first, second, third = (request.sampling for request in backend.requests)
    assert first.temperature == 0.5
    assert None not in (first.seed, second.seed)
    assert first.seed != second.seed
    assert third == Sample(seed=3)
    assert chat.transcript.turns[1].generated[0].sampling == first
    assert chat.transcript.sampling == Sample(temperature=0.5)  # what is asked next draws anew


def test_the_transcript_holds_all_branches_and_where_the_chat_stands():
    chat = Chat(ScriptedBackend(), system="Be brief.")
    chat.ask("one")
    chat.ask("two", max_new_tokens=7, stop="x", adapter=None)
    chat.branch(1)
    chat.ask("two again")
    chat.branch(1)
    found = chat.transcript
    assert [turn.message.text for turn in found.turns] == [
        *("one", "one", "two", "two", "two again", "two again"),
    ]
    assert [turn.parent for turn in found.turns] == [-1, 0, 1, 2, 1, 4]
    assert found.head == 1
    piece = found.turns[3].generated[0]
    assert (piece.text, piece.max_new_tokens, piece.stop) == ("two", 7, ("x",))
    assert (piece.system, piece.model.name) == ("Be brief.", "scripted")
    assert piece.usage.prompt_tokens > 0
    assert not found.turns[0].generated


def test_a_resumed_answer_holds_each_piece():
    chat = Chat(ScriptedBackend(["It is ", "red"]))
    chat.ask("one", max_new_tokens=1)
    assert chat.resume(max_new_tokens=2).answer.text
    pieces = chat.transcript.turns[-1].generated
    assert [piece.text for piece in pieces] == ["It is ", "It is red"]
    assert [piece.max_new_tokens for piece in pieces] == [1, 2]


def test_an_answer_keeps_the_system_text_it_was_asked_with():
    chat = Chat(ScriptedBackend(), system="one")
    chat.ask("A")
    chat.system = "two"
    chat.ask("B")
    systems = [turn.generated[0].system for turn in chat.transcript.turns if turn.generated]
    assert systems == ["one", "two"]


def test_tokens_past_a_stop_string_are_told_apart():
    pieces = tuple(Token(n, text) for n, text in enumerate(["a", " b", " stop"]))
    assert _said_tokens(Answer("a b", "stop", tokens=pieces)) == 2


def test_a_stopped_answer_is_saved_with_what_it_said():
    chat = Chat(ScriptedBackend(["one ", "two "] * 50, seconds_per_chunk=0.02))
    next(chunk for chunk in chat.stream("?") if chunk.text)
    chat.stop()
    assert chat.transcript.turns[-1].message.text.startswith("one")


def test_a_schema_is_kept_as_json():
    class Thing(pydantic.BaseModel):
        name: str

    chat = Chat(ScriptedBackend())
    chat.ask("one", schema=Thing)
    schema = chat.transcript.turns[1].generated[0].schema
    assert schema["properties"]["name"]["type"] == "string"
    assert schema["additionalProperties"] is False


def test_a_saved_chat_goes_on_where_it_was(tmp_path):
    chat = Chat(ScriptedBackend(), system="Be brief.", sampling=Sample(seed=4))
    chat.ask("one", images=[red()])
    chat.ask("two")
    chat.undo()
    path = chat.save(tmp_path / "a.chat.zip")
    backend = ScriptedBackend()
    opened = Chat.open(path, backend, session="mine")
    assert opened.transcript == chat.transcript
    assert opened.versions(1) == chat.versions(1)
    opened.ask("three")
    (request,) = backend.requests
    assert request.conversation == chat.conversation.user("three")
    assert (request.sampling, request.session) == (Sample(seed=4), "mine")


def test_saving_while_an_answer_is_written_leaves_it_out(tmp_path):
    chat = Chat(ScriptedBackend(seconds_per_chunk=5))
    chat.stream("one")
    assert [turn.message.text for turn in read_chat(chat.save(tmp_path / "x")).turns] == ["one"]
    chat.stop()


def test_a_chat_that_exists_is_kept_where_it_may_not_be_replaced(tmp_path):
    chat = Chat(ScriptedBackend())
    path = chat.save(tmp_path / "x")
    with pytest.raises(ConversationError, match="exists already"):
        chat.save(path, overwrite=False)


class Remembering(ScriptedBackend):
    """Notes which tokens it is given for which answers."""

    def __init__(self) -> None:
        super().__init__(capabilities=replace(DEFAULT_CAPABILITIES, tokenizer_sha256="same"))
        self.given: list[tuple[list[str], dict[int, list[int]], str]] = []

    def remember(self, conversation, answers, *, adapter=None, session=""):
        texts = [message.text for message in conversation.messages]
        self.given.append((texts, dict(answers), session))


def test_recorded_tokens_are_given_to_the_backend_once_and_only_for_its_own_tokenizer():
    chat = Chat(Remembering())
    chat.ask("one two")
    chat.ask("three")
    assert chat.backend.given == []  # it wrote them itself
    backend = Remembering()
    opened = Chat.from_transcript(chat.transcript, backend, session="mine")
    assert backend.given == []  # not before they are needed
    opened.ask("four")
    opened.ask("five")
    assert backend.given == [
        (["one two", "one two", "three", "three", "four"], {1: [0, 1], 3: [0]}, "mine")
    ]
    other = Remembering()
    other._capabilities = replace(other._capabilities, tokenizer_sha256="another")
    Chat.from_transcript(chat.transcript, other).ask("four")
    assert other.given == []


# --- several threads, and following a chat --------------------------------------------------------


class Held(ScriptedBackend):
    """Gives streams that end when the test says so, after a moment as real ones need."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[Stream] = []

    def stream(self, conversation, **options):
        time.sleep(0.05)
        self.streams.append(Stream())
        return self.streams[-1]


def test_threads_that_look_at_once_all_see_the_answer():
    chat = Chat(Held())
    stream = chat.stream("one")
    stream.cancel()
    with ThreadPoolExecutor(3) as pool:
        looks = [pool.submit(lambda: chat.conversation) for _ in range(3)]
        time.sleep(0.1)
        stream.finish(Answer("A cat.", "cancelled"))
    assert [[m.text for m in look.result().messages] for look in looks] == [["one", "A cat."]] * 3


def test_of_two_threads_that_ask_at_once_one_is_refused():
    chat = Chat(Held())
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(chat.stream, text) for text in ("one", "two")]
        refused = [each.exception() for each in asked if each.exception()]
    assert len(chat.backend.streams) == 1
    assert [type(error) for error in refused] == [ConversationError]


def test_an_interrupt_while_a_stopped_answer_ends_does_not_lose_it(monkeypatch):
    chat = Chat(Held())
    stream = chat.stream("one")
    stream.cancel()

    def interrupt(stream):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "answer", property(interrupt))
        with pytest.raises(KeyboardInterrupt):
            chat.undo()
    stream.finish(Answer("A cat.", "cancelled"))
    assert roles_and_texts(chat)[-1] == ("assistant", "A cat.")


def told(chat: Chat) -> "queue.Queue[list[str]]":
    """Return what there is each time that a chat tells of a change."""
    seen: queue.Queue[list[str]] = queue.Queue()
    chat.on_change(lambda: seen.put([message.text for message in chat.conversation.messages]))
    return seen


def test_who_follows_a_chat_is_told_of_questions_answers_and_branches():
    chat = Chat(Held())
    seen = told(chat)
    stream = chat.stream("one")
    assert seen.get(timeout=9) == ["one"]
    stream.finish(Answer("A cat.", "stop"))
    assert seen.get(timeout=9) == ["one", "A cat."]
    chat.undo()
    assert seen.get(timeout=9) == []


def test_who_begins_to_follow_while_an_answer_is_written_is_told_of_its_end():
    chat = Chat(Held())
    stream = chat.stream("one")
    seen = told(chat)
    assert seen.empty()
    stream.fail(EngineError("It broke."))
    assert seen.get(timeout=9) == ["one"]


def test_a_refused_question_is_no_change_and_a_follower_that_fails_breaks_nothing(caplog):
    chat = Chat(ScriptedBackend())
    seen = told(chat)
    with pytest.raises(ConversationError):
        chat.ask("one", max_new_tokens=0)
    assert seen.empty()

    def fail():
        raise RuntimeError("It broke.")

    chat.on_change(fail)
    assert chat.ask("one").text == "one"
    assert "a follower of a chat failed" in caplog.text
