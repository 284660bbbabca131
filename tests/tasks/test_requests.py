"""Requests are asked side by side, a few at a time, and told in order."""

import pytest
from PIL import Image

from gemma3vl_app.errors import BusyError, ConversationError, EngineError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Picture
from gemma3vl_app.tasks.requests import (
    TaskRequest,
    is_pdf,
    listed,
    naming,
    open_pictures,
    streams_in_order,
)
from gemma3vl_app.testing.scripted import DEFAULT_CAPABILITIES, ScriptedBackend


def numbered(count):
    return [TaskRequest(Conversation().user(f"{number}")) for number in range(count)]


def test_answers_come_in_order_and_few_are_under_way():
    backend = ScriptedBackend()
    asked, texts = [], []
    for stream in streams_in_order(backend, numbered(10), in_flight=3):
        asked.append(len(backend.requests))
        texts.append(stream.answer.text)
    assert texts == [str(number) for number in range(10)]
    assert asked == [3, 4, 5, 6, 7, 8, 9, 10, 10, 10]


def test_whoever_stops_early_cancels_the_rest():
    backend = ScriptedBackend(["never "] * 1000, seconds_per_chunk=0.01)
    streams = streams_in_order(backend, numbered(5), in_flight=3)
    first = next(streams)
    streams.close()
    assert first.answer.finish_reason == "cancelled"
    assert len(backend.requests) == 3


class FullBackend(ScriptedBackend):
    """Takes one request at a time."""

    def stream(self, *arguments, **options):
        if self.running:
            raise BusyError("1 request is waiting already; try again in a moment.")
        return super().stream(*arguments, **options)


def test_a_full_queue_is_waited_for():
    backend = FullBackend(seconds_per_chunk=0.01)
    answers = [stream.answer.text for stream in streams_in_order(backend, numbered(4))]
    assert answers == ["0", "1", "2", "3"]


def test_a_queue_that_others_fill_is_told():
    backend = FullBackend(["slow "] * 100, seconds_per_chunk=0.01)
    with (
        backend.stream(Conversation().user("Somebody else's")),
        pytest.raises(BusyError),
    ):
        next(streams_in_order(backend, numbered(2)))


def test_a_refused_request_fails_when_it_is_its_turn():
    backend = ScriptedBackend()
    requests = [*numbered(2), TaskRequest(Conversation()), *numbered(1)]
    streams = streams_in_order(backend, requests)
    assert [next(streams).answer.text for _ in range(2)] == ["0", "1"]
    with pytest.raises(ConversationError):
        _ = next(streams).answer


def test_a_task_is_greedy_and_as_long_as_usual_unless_told_otherwise():
    backend = ScriptedBackend()
    plain = TaskRequest(Conversation().user("?"))
    plain.stream(backend)
    TaskRequest(plain.conversation, answer_factor=4).stream(backend, {"sampling": None})
    plain.stream(backend, {"sampling": Sample(seed=1), "max_new_tokens": 5, "session": "s"})
    usual = backend.capabilities.answer_tokens
    assert [(each.sampling, each.max_new_tokens) for each in backend.requests] == [
        (Greedy(), usual),
        (Greedy(), 4 * usual),
        (Sample(seed=1), 5),
    ]


def test_a_model_that_keeps_to_no_schema_is_not_asked():
    from dataclasses import replace

    backend = ScriptedBackend(capabilities=replace(DEFAULT_CAPABILITIES, schema=False))
    with pytest.raises(ConversationError, match="scripted cannot be held to a schema"):
        TaskRequest(Conversation().user("?"), {"type": "object"}).stream(backend)


def test_an_error_says_which_picture_it_is_about():
    with pytest.raises(EngineError, match=r"^a\.png: It broke\.$"), naming("a.png"):
        raise EngineError("It broke.")


def test_one_picture_may_stand_alone_whatever_it_is_made_of(tmp_path):
    image = Image.new("RGB", (9, 9), "red")
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "two.PDF", "PDF", save_all=True, append_images=[image])
    data = (tmp_path / "a.png").read_bytes()
    picture = Picture.open(image)
    for source in (tmp_path / "a.png", data, bytearray(data), image, picture, [data], iter([data])):
        assert [each.sha256 for each in open_pictures(source, "on")] == [picture.sha256]
    pages = open_pictures([tmp_path / "two.PDF", image], "on")
    assert [page.crops for page in pages] == ["on"] * 3
    assert is_pdf((tmp_path / "two.PDF").read_bytes()) and not is_pdf(data)
    assert listed("a.png") == ["a.png"]
