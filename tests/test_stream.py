"""A stream hands an answer from the thread that makes it to the one that reads it."""

import asyncio
import threading
import time

import pytest

from gemma3vl_app.errors import EngineError
from gemma3vl_app.generation import Answer, Chunk
from gemma3vl_app.stream import Stream

DONE = Answer("ab", "stop")


def later(seconds: float, *steps) -> None:
    """Run `steps` in another thread, each after a pause."""

    def run() -> None:
        for step in steps:
            time.sleep(seconds)
            step()

    threading.Thread(target=run, daemon=True).start()


def test_chunks_are_read_in_the_order_they_were_put():
    stream = Stream()
    later(
        0.01,
        lambda: stream.put(Chunk("a")),
        lambda: stream.put(Chunk("b")),
        lambda: stream.finish(DONE),
    )
    assert [chunk.text for chunk in stream] == ["a", "b"]


def test_the_answer_waits_for_the_end_even_when_no_chunk_is_read():
    stream = Stream()
    later(0.05, lambda: stream.put(Chunk("ab")), lambda: stream.finish(DONE))
    assert not stream.done
    assert stream.answer is DONE
    assert [chunk.text for chunk in stream] == ["ab"]


def test_an_error_is_raised_after_the_chunks_already_put():
    stream = Stream()
    stream.put(Chunk("a"))
    stream.fail(EngineError("It broke."))
    assert next(stream).text == "a"
    with pytest.raises(EngineError, match="It broke"):
        next(stream)
    with pytest.raises(EngineError, match="It broke"):
        _ = stream.answer


def test_only_the_first_end_counts():
    stream = Stream()
    stream.finish(DONE)
    stream.fail(EngineError("too late"))
    stream.finish(Answer("other", "stop"))
    assert stream.answer is DONE


def test_cancel_from_many_threads_tells_the_producer_once():
    calls = []
    stream = Stream(on_cancel=lambda: calls.append(1))
    threads = [threading.Thread(target=stream.cancel) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.cancelled
    assert calls == [1]


def test_leaving_the_with_block_early_cancels():
    with Stream() as stream:
        stream.put(Chunk("a"))
        next(stream)
    assert stream.cancelled


def test_leaving_the_with_block_after_the_end_does_not_cancel():
    with Stream() as stream:
        stream.finish(DONE)
    assert not stream.cancelled


def test_async_iteration_yields_everything_and_lets_other_tasks_run():
    async def read() -> tuple[list[str], int]:
        stream, ticks = Stream(), 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.005)

        ticking = asyncio.create_task(tick())
        later(
            0.03,
            lambda: stream.put(Chunk("a")),
            lambda: stream.put(Chunk("b")),
            lambda: stream.finish(DONE),
        )
        texts = [chunk.text async for chunk in stream]
        ticking.cancel()
        return texts, ticks

    texts, ticks = asyncio.run(read())
    assert texts == ["a", "b"]
    assert ticks >= 5


def test_async_iteration_raises_the_error_after_the_chunks():
    async def read() -> list[str]:
        stream, texts = Stream(), []
        later(0.01, lambda: stream.put(Chunk("a")), lambda: stream.fail(EngineError("It broke.")))
        with pytest.raises(EngineError, match="It broke"):
            async for chunk in stream:
                texts.append(chunk.text)
        return texts

    assert asyncio.run(read()) == ["a"]
