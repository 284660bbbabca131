"""Requests made up at random: never a failure of the server, and the next answer is the same.

200 in every run; GEMMA3VL_FUZZ=10000 makes it so many.
"""

import json
import os
import re

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma3vl_app.api.requests import ChatCompletionRequest
from gemma3vl_app.api.response_requests import ResponseRequest
from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.api.servers import chat_body, picture_url, served

EXAMPLES = int(os.environ.get("GEMMA3VL_FUZZ", "200"))
LEAKS = re.compile(r"0x[0-9a-f]{6,}|object at|/home/|/root/|/tmp/|Traceback|site-packages")
CANARY = chat_body("Hello dear reader", temperature=0)

numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2**31, 2**63, 1e308, True, 0.5])
)
texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", "\x00", "<start_of_image>", "<end_of_turn>", "auto", "text", "json_schema", "none"]
    ),
    st.sampled_from(
        [picture_url(), "data:image/png;base64,AAAA", "file:///etc/passwd", "http://x"]
    ),
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                texts,
                st.sampled_from(["type", "text", "role", "content", "url", "image_url", "schema"]),
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)
roles = st.sampled_from(["user", "assistant", "system", "developer", "tool"])
detail = st.sampled_from(["low", "high", "auto", "ultra"])
parts = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
    st.fixed_dictionaries({"type": st.just("input_text"), "text": texts}),
    st.fixed_dictionaries(
        {
            "type": st.just("image_url"),
            "image_url": st.fixed_dictionaries({"url": texts}, optional={"detail": detail}),
        }
    ),
    st.fixed_dictionaries({"type": st.just("input_image"), "image_url": texts}),
    anything,
)
contents = st.one_of(texts, st.lists(parts, max_size=3), anything)
messages = st.lists(
    st.one_of(st.fixed_dictionaries({"role": roles, "content": contents}), anything), max_size=4
)


def bodies(request, own, **likely):
    """Bodies with fields that there are, values that may fit, and fields that there are not."""
    names = [*request.model_fields, *request.neutral, *request.left_aside]
    known = st.dictionaries(st.sampled_from(names), anything, max_size=4)
    unknown = st.dictionaries(st.text(max_size=12), anything, max_size=1)
    fitting = st.fixed_dictionaries({}, optional=likely)
    return st.builds(
        lambda a, b, c, d: {"model": "scripted", **a, **b, **c, **d}, own, fitting, known, unknown
    )


valid_chat = st.just(chat_body())
any_chat = st.fixed_dictionaries({"messages": messages})
valid_response = st.just({"input": "Hello"})
any_response = st.fixed_dictionaries({"input": st.one_of(texts, messages)})
likely = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "n": st.integers(1, 4),
    "stream": st.booleans(),
    "max_tokens": st.integers(1, 20),
    "logprobs": st.booleans(),
    "stop": st.one_of(st.text(max_size=3), st.lists(st.text(max_size=3), max_size=3)),
    "seed": st.integers(0, 2**63 - 1),
}
requests = st.one_of(
    st.tuples(
        st.just("/v1/chat/completions"),
        bodies(ChatCompletionRequest, st.one_of(valid_chat, any_chat), **likely),
    ),
    st.tuples(
        st.just("/v1/responses"),
        bodies(ResponseRequest, st.one_of(valid_response, any_response), stream=st.booleans()),
    ),
)


@pytest.fixture(scope="module")
def client():
    with (
        served(ScriptedBackend(), requests_per_minute=10**9) as server,
        httpx.Client(base_url=server.address, timeout=60) as client,
    ):
        yield client


def canary(client):
    """The same question's answer, without what differs each time."""
    answer = client.post("/v1/chat/completions", json=CANARY).json()
    del answer["id"], answer["created"]
    # The scripted model counts what it was asked before as cached; the words are what matters.
    del answer["usage"]["prompt_tokens_details"]
    return json.dumps(answer)


def test_no_request_breaks_the_server_or_the_next_answer(client):
    before, seen = canary(client), set()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize="GEMMA3VL_FUZZ" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests)
    def send(request):
        path, body = request
        content = json.dumps(body)  # NaN and infinity too, as careless programs send them
        headers = {"content-type": "application/json"}
        response = client.post(path, content=content, headers=headers)
        seen.add(response.status_code)
        assert response.status_code in (200, 400, 404), response.text
        assert not LEAKS.search(response.text), response.text
        assert "internal_error" not in response.text
        if response.status_code != 200:
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"] and error["type"] == "invalid_request_error"

    send()
    assert canary(client) == before
    assert {200, 400} <= seen  # it gets through to the model, and it is refused
