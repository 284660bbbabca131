"""Ten thousand requests made from the API's description, to a real engine in its own process."""

import pytest

from tests.api.described import send
from tests.faults.model_process import model_process
from tests.stress import memory
from tests.stress.canary import KEYS, Canary

BATCHES, EACH = 10, 250  # 250 of two kinds to two paths, and a few to the others
MOST_TOKENS = 8  # a random model hardly ever ends of its own accord
KEY = "key-of-the-stress-test"


@pytest.mark.stress
def test_ten_thousand_requests_made_from_the_description_do_no_harm(tiny):
    with model_process(tiny, [KEY, *KEYS], answer_tokens=MOST_TOKENS) as served:
        canary, sent = Canary(served.address), 0  # one answer, so that the model has been used
        resident = [served.resident_bytes()]
        for batch in range(BATCHES):
            seen = send(served.address, each=EACH, model="tiny", key=KEY, seed=batch)
            sent += seen.total()
            canary.check(f"batch {batch}")
            resident.append(served.resident_bytes())
            print(batch, sent, resident[-1] >> 20, dict(seen), flush=True)
        print(f"{sent:,} requests")
        assert sent >= 10_000
        memory.check(resident)
