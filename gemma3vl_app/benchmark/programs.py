"""Programs that ask a page at the same moment: `python -m gemma3vl_app.benchmark.programs ADDRESS`.

A process of its own, so that what the programs compute does not stop the server's threads. Prints a
list for each question that all of them asked: the seconds each waited for the first words.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from typing import Any

from gradio_client import Client

USERS, QUESTIONS = 20, 3
_AT_MOST_SEC = 60


def main(address: str) -> None:
    """Connect all programs, let them ask together, and print how long each waited."""
    # Without checking certificates, which http has none of: reading those of all authorities, as
    # each request would, takes 35 ms, and twenty users do not do that on one computer.
    users = [
        Client(address, verbose=False, analytics_enabled=False, ssl_verify=False)
        for _ in range(USERS)
    ]
    gc.collect()
    gc.freeze()  # a search for unused objects would stop all twenty at once, which share a process
    together = threading.Barrier(USERS)
    waited: list[list[float]] = [[] for _ in range(QUESTIONS)]

    def use(user: Client) -> None:
        for number in range(QUESTIONS):
            together.wait()
            waited[number].append(_ask(user, f"Question {number}"))

    threads = [threading.Thread(target=use, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps(waited) + "\n")


def _ask(user: Client, question: str) -> float:
    """Return the seconds from sending a question to the first words; waits for all of them."""
    began = time.perf_counter()
    job: Any = user.submit(question, api_name="/ask")
    next(iter(job))
    seconds = time.perf_counter() - began
    job.result(timeout=_AT_MOST_SEC)
    return seconds


if __name__ == "__main__":
    main(sys.argv[1])
