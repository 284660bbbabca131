"""Memory that runs out at any stage costs one request, which is told so; all others go on."""

import gc
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest
import torch

from gemma3vl_app.testing import tiny_checkpoint
from tests.faults.model_server import STAGES, said, served_model
from tests.faults.next_answer import NEXT_WITHIN_SEC, next_answer_within

ROOT = Path(__file__).parents[2]
ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] can't allocate memory: 9000 bytes"),
]
# Each stage and each error once; all pairs under stress.
CASES = [
    pytest.param(stage, error, marks=() if row == column else pytest.mark.stress)
    for row, stage in enumerate(STAGES)
    for column, error in enumerate(ERRORS)
]
VICTIM = "The victim asks this"
ADVICE = "Use fewer or smaller pictures"


@pytest.fixture(scope="module")
def model(tiny):
    with served_model(tiny) as model:
        yield model


@contextmanager
def shortage(model, stage, error):
    """Let memory run out in each pass of a stage that works for the victim, and in no other."""
    model.backend.engine.call(model.backend.engine._drop_caches)  # or a stage would be skipped
    decoder = model.backend.engine._decoder
    prefill, vision = model.backend.engine._prefill, model.backend.engine._prefill.vision
    victim = model.backend._tokenizer.encode(VICTIM)

    def is_victim(sequence):
        ids = sequence.request.prompt.ids.tolist()
        return any(ids[at : at + len(victim)] == victim for at in range(len(ids)))

    def failing(real, rows):
        def wrapped(*arguments):
            if any(is_victim(each) for each in rows(*arguments)):
                with model.before(stage, _raise(error)):
                    return real(*arguments)
            return real(*arguments)

        return wrapped

    with pytest.MonkeyPatch.context() as patched:
        if stage == "decode":
            patched.setattr(decoder, "_hidden", failing(decoder._hidden, lambda rows, _: rows))
        elif stage == "prefill":
            real = prefill._compute_chunk

            def chunk(sequence, *rest):
                during = model.before(stage, _raise(error))
                with during if is_victim(sequence) else nullcontext():
                    return (yield from real(sequence, *rest))

            patched.setattr(prefill, "_compute_chunk", chunk)
        else:  # only the victim has a picture
            patched.setattr(vision, "embed", _raise(error))
        yield


def _raise(error):
    def act(*_):
        raise error

    return act


@pytest.mark.parametrize(("stage", "error"), CASES)
def test_only_the_one_it_was_for_is_told_and_the_others_say_what_they_would_have(
    model, stage, error
):
    others = [f"Question {number}" for number in range(3)]
    alone = [said(model.ask(text, tokens=40)) for text in others]
    with shortage(model, stage, error), ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(model.ask, text, tokens=40) for text in others]
        failed = model.ask(VICTIM, picture="red", tokens=40)
        together = [said(each.result()) for each in asked]
        assert failed.status_code == 503
        assert failed.headers["retry-after"]
        assert failed.json()["error"]["code"] == "out_of_memory"
        assert ADVICE in failed.json()["error"]["message"]
    assert together == alone
    next_answer_within(NEXT_WITHIN_SEC, lambda: model.ask(VICTIM, picture="red"))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("times", [8, pytest.param(40, marks=pytest.mark.stress)])
def test_many_in_a_row_leave_the_model_as_it_was(model, stage, times):
    canary = said(model.ask("The canary", picture="blue", tokens=20))
    process = psutil.Process()

    def fail(times):
        with shortage(model, stage, MemoryError()):
            for _ in range(times):
                assert model.ask(VICTIM, picture="red").status_code == 503
        gc.collect()
        return process.memory_info().rss

    before = fail(10)
    after = fail(times)
    next_answer_within(NEXT_WITHIN_SEC, lambda: model.ask(VICTIM, picture="red"))
    assert after - before < 32 << 20
    assert said(model.ask("The canary", picture="blue", tokens=20)) == canary
    assert model.backend.engine.queued == (0, 0)


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="no such limit on memory here")
def test_where_the_system_truly_gives_no_memory_a_long_prompt_is_told_and_a_short_one_works(
    tmp_path,
):
    wide = tiny_checkpoint(tmp_path / "wide", text={"intermediate_size": 16_384})
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.short_of_memory", str(wide)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not ended.returncode, ended.stderr[-3000:]
    found = json.loads(ended.stdout)
    assert found["is_same"]
    assert len(found["refused"]) == 3
    assert all(ADVICE in said for said in found["refused"])
