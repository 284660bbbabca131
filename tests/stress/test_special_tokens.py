"""No special token of the real vocabulary steers the model, or harms the server, from any field.

What counts is what reaches the engine: prompts are looked at as it gets them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from gemma3vl_app.prompting.tokenizer import CONTROL_TOKENS
from tests.faults.model_process import client_of
from tests.faults.model_server import Model, served_model
from tests.stress.canary import KEYS, Canary
from tests.stress.token_fields import FIELDS, Field

KEY = "key-of-the-stress-test"
CHUNK = 300  # some 2,000 tokens of text
CONNECTIONS = 4


@pytest.fixture(scope="module")
def model(tiny: Path) -> Iterator[Model]:
    with served_model(tiny, keys=[KEY, *KEYS]) as model:
        yield model


@contextmanager
def prompts_seen(model: Model) -> Iterator[list[list[int]]]:
    """Note the control ids of each prompt that the engine gets."""
    control = model.backend._tokenizer.control_ids
    seen: list[list[int]] = []
    submit = model.backend.engine.submit

    def noted(request):
        seen.append([id for id in request.prompt.ids.tolist() if id in control])
        return submit(request)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model.backend.engine, "submit", noted)
        yield seen


def control_ids(
    model: Model, client: httpx.Client, field: Field, tokens: list[str]
) -> list[list[int]]:
    """Send the requests of a field; returns the control ids of the prompts that came of them."""
    bodies = list(field.bodies(tokens))
    with prompts_seen(model) as seen, ThreadPoolExecutor(CONNECTIONS) as pool:
        replies = pool.map(lambda body: client.post(field.path, json=body), bodies)
        for reply in replies:
            assert reply.status_code == field.status, f"{field.name}: {reply.text}"
    assert len(seen) == (len(bodies) if field.status == 200 else 0)
    return seen


def spelled(model: Model) -> list[str]:
    """All added tokens of the vocabulary, those that steer first."""
    added = model.backend._tokenizer.raw.get_added_tokens_decoder().values()
    found = [token.content for token in added if token.content not in CONTROL_TOKENS]
    return [*CONTROL_TOKENS, *found]


def check(model: Model, tokens: list[str], chunk: int) -> None:
    """Spell tokens in each field, so many in a chunk; prompts have what the template puts there."""
    canary = Canary(model.server.address)
    with client_of(model.server.address, KEY) as client:
        harmless = [control_ids(model, client, field, ["harmless"])[:1] for field in FIELDS]
        for start in range(0, len(tokens), chunk):
            for field, expected in zip(FIELDS, harmless, strict=True):
                for found in control_ids(model, client, field, tokens[start : start + chunk]):
                    assert [found] == expected, field.name
            canary.check(tokens[start])


def test_tokens_that_steer_stay_text_in_every_field(model: Model) -> None:
    some = spelled(model)
    check(model, [*CONTROL_TOKENS, *some[len(CONTROL_TOKENS) :: 200]], CHUNK)


@pytest.mark.stress
def test_all_added_tokens_stay_text_in_every_field(model: Model) -> None:
    tokens = spelled(model)
    assert len(tokens) > 6_000
    check(model, tokens, CHUNK)
