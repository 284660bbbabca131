"""Ten thousand requests made from the API's description, to a real engine in its own process."""

import httpx
import psutil
import pytest

from gemma3vl_app.testing import tiny_checkpoint
from tests.api.described import send
from tests.faults.overload import model_process

BATCHES, EACH = 10, 250  # 250 of two kinds to two paths, and a few to the others
MEMORY_GROWTH = 0.1
MOST_TOKENS = 8  # a random model hardly ever ends of its own accord
KEY = "key-of-the-stress-test"


def canary(client):
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Which number comes after seven?"}],
        "temperature": 0,
        "max_tokens": MOST_TOKENS,
    }
    return client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]


@pytest.mark.stress
def test_ten_thousand_requests_made_from_the_description_do_no_harm(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    with (
        model_process(checkpoint, [KEY], answer_tokens=MOST_TOKENS) as (process, address),
        httpx.Client(
            base_url=address, timeout=60, headers={"authorization": f"Bearer {KEY}"}
        ) as client,
    ):
        before, server = canary(client), psutil.Process(process.pid)
        resident, sent = [], 0
        for batch in range(BATCHES):
            seen = send(address, each=EACH, model="tiny", key=KEY, seed=batch)
            sent += seen.total()
            assert canary(client) == before
            resident.append(server.memory_info().rss)
            print(batch, sent, resident[-1] >> 20, dict(seen), flush=True)
        print(f"{sent:,} requests; memory {[each >> 20 for each in resident]} MiB")
        assert sent >= 10_000
        assert resident[-1] <= resident[0] * (1 + MEMORY_GROWTH)
