"""A run that is killed goes on: every item is asked, and none that was answered is asked again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import gemma3vl_app as gv
from tests.evaluation.answering import AnsweringBackend, animals

ROOT = Path(__file__).parents[2]
RIGHT = {f"number {n}?": f"animal {n}" for n in range(40)}
RUN = """
import sys
import gemma3vl_app as gv
from tests.evaluation.answering import AnsweringBackend

data, out = sys.argv[1:]
answers = {f"number {n}?": f"animal {n}" for n in range(40)}

class Slow(AnsweringBackend):
    def stream(self, conversation, **options):
        stuck = len(self.requests) >= 10  # these are never answered
        self._seconds_per_chunk = 600.0 if stuck else 0.0
        return super().stream(conversation, **options)

backend = Slow(answers)
tell = lambda step: print(step.done, flush=True)
gv.evaluate(backend, "docvqa", data=data, out=out, progress=tell)
"""


def test_after_a_kill_the_same_call_asks_the_rest_and_ends_as_if_undisturbed(tmp_path):
    data = animals(tmp_path, 24)
    whole = gv.evaluate(AnsweringBackend(RIGHT), "docvqa", data=data)
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(data), str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if int(line) >= 9:
                break
        process.send_signal(signal.SIGKILL)
    kept = len((tmp_path / "run" / "answers.jsonl").read_text().splitlines())
    assert 9 <= kept < 24
    backend = AnsweringBackend(RIGHT)
    done = gv.evaluate(backend, "docvqa", data=data, out=tmp_path / "run")
    assert len(backend.asked) == 24 - kept
    assert done.scores == whole.scores
    assert [case.text for case in done.cases] == [case.text for case in whole.cases]
