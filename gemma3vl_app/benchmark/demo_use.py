"""How quick and frugal the demo is in use: from its start to an answer, pictures, words, memory.

`python -m gemma3vl_app.benchmark.demo_use` is the measured process: it asks about pictures and
says what it took, so that nothing of ours is in its memory.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

from gemma3vl_app.benchmark.result import Result

PICTURES = 8  # that nobody has seen before; the median counts
LONGEST_ANSWER = 160


def demo_use() -> list[Result]:
    """The demo, converted before: start, pictures, words, and memory above the imports."""
    began = time.perf_counter()
    output = subprocess.run(
        [sys.executable, "-m", __name__], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    whole_sec = time.perf_counter() - began
    found = json.loads(output.splitlines()[-1])
    started_sec = whole_sec - found["after_first_answer_sec"]
    return [
        _result("demo, from starting Python until it has answered", started_sec, "s", 15),
        _result("demo, seeing a new picture (decoding and tower)", found["picture_sec"], "s", 0.5),
        _result("demo, words of one answer", found["tokens_per_sec"], "tokens/s", 25),
        _result(
            "demo, peak of memory in use above the imports", found["peak_bytes"] / 1e9, "GB", 1.5
        ),
    ]


def _result(name: str, value: float, unit: str, target: float) -> Result:
    return Result(
        name=name,
        value=value,
        baseline=1.0,
        unit=unit,
        baseline_name="a second" if unit == "s" else f"1 {unit}",
        bound="at least" if unit == "tokens/s" else "at most",
        target=target,
    )


def main() -> None:
    """Ask about pictures; print how long each stage took, as JSON."""
    import psutil
    import torch

    from gemma3vl_app.backends.local import load
    from gemma3vl_app.benchmark.models import drawn_picture
    from gemma3vl_app.messages import Conversation

    torch.ones(8, 8) @ torch.ones(8, 8)  # what the libraries set up when first used is no model
    imported_bytes = psutil.Process().memory_info().rss
    with load("demo") as backend:
        answers = []
        for number in range(PICTURES + 1):
            picture = drawn_picture(number)
            asked = Conversation().user(picture, "Describe this picture in detail.")
            answers.append(backend.stream(asked, max_new_tokens=LONGEST_ANSWER).answer)
            if number == 0:
                answered = time.perf_counter()
        timings = [answer.timing for answer in answers[1:]]
        figures = {
            "picture_sec": statistics.median(t.decode_image_sec + t.vision_sec for t in timings),
            "tokens_per_sec": statistics.median(t.tokens_per_sec for t in timings),
        }
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux counts KiB
    figures["peak_bytes"] = peak_bytes - imported_bytes
    figures["after_first_answer_sec"] = time.perf_counter() - answered
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
