"""A program that ends while its model computes ends as any other."""

import subprocess
import sys

import pytest

WRITING = """
import sys
from gemma3vl_app.backends.local import load
from gemma3vl_app.messages import Conversation
backend = load(sys.argv[1])
stream = backend.stream(Conversation().user("Hi"), max_new_tokens=5000)
next(chunk for chunk in stream if chunk.tokens)
"""
HANGS = """
from gemma3vl_app.engine import leaving
class Hanging:
    def close(self, timeout_sec=None):
        print(timeout_sec)
kept = Hanging()
leaving.close_at_exit(kept)
leaving.close_at_exit(Hanging())
"""


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("attempt", range(4))  # seven of eight were aborted
def test_a_program_may_end_in_the_middle_of_an_answer(tiny, attempt):
    ended = run(WRITING, str(tiny))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_is_still_there_is_given_a_bounded_time_to_end():
    ended = run(HANGS)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "5.0\n", "")
