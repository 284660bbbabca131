"""On a real engine: a client that resends the history has it computed once, under its key alone."""

import json

import openai
import pytest

from gemma3vl_app.backends.local import load
from tests.api.servers import KEY, OTHER_KEY, picture_url, served


@pytest.fixture(scope="module")
def server(tiny):
    with load(tiny) as backend, served(backend, keys=[KEY, OTHER_KEY]) as running:
        running.model = backend.capabilities.model
        yield running


def connect(server, key):
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0)


def test_history_with_pictures_is_computed_once_for_each_key(server):
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": picture_url(size=64)}},
            ],
        }
    ]

    def ask(key):
        with connect(server, key) as client:
            return client.chat.completions.create(
                model=server.model, messages=messages, temperature=0, max_tokens=6
            )

    first = ask(KEY)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    messages.append(first.choices[0].message.model_dump())
    messages.append({"role": "user", "content": "And why?"})
    second = ask(KEY)
    known = first.usage.prompt_tokens + first.usage.completion_tokens - 1
    assert second.usage.prompt_tokens_details.cached_tokens >= known
    assert ask(OTHER_KEY).usage.prompt_tokens_details.cached_tokens == 0
    del messages[1:]
    stranger, again = ask(OTHER_KEY), ask(KEY)
    assert stranger.choices[0].message.content == again.choices[0].message.content


def test_a_stream_and_a_whole_answer_say_the_same(server):
    messages = [{"role": "user", "content": "Count to three."}]
    options = {"model": server.model, "messages": messages, "temperature": 0, "max_tokens": 8}
    with connect(server, KEY) as client:
        whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=3)
        chunks = list(client.chat.completions.create(**options, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == (
        whole.choices[0].message.content
    )
    token = whole.choices[0].logprobs.content[0]
    assert len(token.top_logprobs) == 3
    assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)


def test_json_of_a_schema_is_enforced_by_the_engine(server):
    schema = {"type": "object", "properties": {"old": {"type": "boolean"}}, "required": ["old"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with connect(server, KEY) as client:
        done = client.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": "Is it old?"}],
            response_format=form,
            max_tokens=40,
        )
        assert isinstance(json.loads(done.choices[0].message.content)["old"], bool)
        with pytest.raises(openai.BadRequestError):  # the engine's own refusal
            client.chat.completions.create(
                model=server.model,
                messages=[{"role": "user", "content": "Is it old?"}],
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                },
            )


def test_the_engine_reports_its_progress(server):
    api = server.app.state.api
    activity = api.backend().activity
    assert (activity.running, activity.waiting, activity.alive) == (0, 0, True)
    assert activity.still_sec == 0
