"""OpenAI's own client works unchanged: sync, async, streaming, pictures, schemas, errors."""

import asyncio
import json

import openai
import pytest
from pydantic import BaseModel

from gemma3vl_app.errors import BusyError, EngineError, MemoryLimitError
from gemma3vl_app.generation import Greedy, Sample
from gemma3vl_app.testing.scripted import LOGPROB, ScriptedBackend
from tests.api.servers import HeldBackend, picture_url, served

HELLO = [{"role": "user", "content": "Hello dear reader"}]


def connect(server, **options):
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, **options)


def test_an_answer_comes_whole(client, backend):
    done = client.chat.completions.create(model="scripted", messages=HELLO)
    (choice,) = done.choices
    assert (choice.message.content, choice.message.role) == ("Hello dear reader", "assistant")
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert (done.object, done.model) == ("chat.completion", "scripted")
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 3)
    assert done.usage.total_tokens == 6
    assert done.id.startswith("chatcmpl-") and done.system_fingerprint.startswith("fp_")


def test_an_answer_streams(client):
    chunks = list(client.chat.completions.create(model="scripted", messages=HELLO, stream=True))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert [text for text in texts if text] == ["Hello ", "dear ", "reader"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_tells_its_usage_when_asked(client):
    *chunks, last = client.chat.completions.create(
        model="scripted", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == [] and last.usage.completion_tokens == 3
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_the_async_client_works(server):
    async def talk():
        address = f"{server.address}/v1"
        async with openai.AsyncOpenAI(base_url=address, api_key="none") as client:
            ask = client.chat.completions.create
            whole = await ask(model="scripted", messages=HELLO)
            stream = await ask(model="scripted", messages=HELLO, stream=True)
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            many = await asyncio.gather(*(ask(model="scripted", messages=HELLO) for _ in range(8)))
            return whole.choices[0].message.content, "".join(texts), many

    whole, streamed, many = asyncio.run(talk())
    assert whole == streamed == "Hello dear reader"
    assert {each.choices[0].message.content for each in many} == {"Hello dear reader"}


def test_pictures_come_as_data_urls_with_their_detail(client, backend):
    parts = [{"type": "text", "text": "Which is older?"}] + [
        {"type": "image_url", "image_url": {"url": picture_url(color), **detail}}
        for color, detail in (("red", {}), ("blue", {"detail": "low"}), ("red", {"detail": "high"}))
    ]
    done = client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": parts}]
    )
    (message,) = backend.requests[0].conversation.messages
    assert [picture.crops for picture in message.pictures] == ["auto", "off", "on"]
    assert [picture.name for picture in message.pictures] == [f"picture {n}" for n in (1, 2, 3)]
    assert message.pictures[1].rgb.getpixel((0, 0)) == (0, 0, 255)
    assert done.usage.prompt_tokens_details.image_tokens == 3 * 64


def test_system_and_developer_texts_are_one_system_text(client, backend):
    client.chat.completions.create(
        model="scripted",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            *HELLO,
        ],
    )
    assert backend.requests[0].conversation.system == "Be brief.\n\nBe kind."


def test_a_resent_history_is_found_again(client):
    ask = client.chat.completions.create
    first = ask(model="scripted", messages=HELLO)
    said = first.choices[0].message.model_dump()  # with all its empty fields, as programs do
    again = ask(model="scripted", messages=[*HELLO, said, {"role": "user", "content": "And now?"}])
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert again.usage.prompt_tokens_details.cached_tokens == 3


def test_numbers_of_sampling_arrive(client, backend):
    ask = client.chat.completions.create
    more = {"top_k": 5}
    ask(model="scripted", messages=HELLO, temperature=0.7, top_p=0.5, seed=3, extra_body=more)
    ask(model="scripted", messages=HELLO, temperature=0)
    ask(model="scripted", messages=HELLO, stop=["dear"], max_completion_tokens=7)
    ask(model="scripted", messages=HELLO, stop="dear", max_tokens=1)
    asked = [request.sampling for request in backend.requests]
    assert asked[:2] == [Sample(temperature=0.7, top_p=0.5, top_k=5, seed=3), Greedy()]
    assert [r.stop for r in backend.requests[2:]] == [("dear",), ("dear",)]
    assert [r.max_new_tokens for r in backend.requests[2:]] == [7, 1]


def test_an_answer_that_is_cut_off_says_so(client):
    done = client.chat.completions.create(model="scripted", messages=HELLO, max_tokens=2)
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (
        "Hello dear ",
        "length",
    )


def test_several_choices_have_a_seed_each(client, backend):
    done = client.chat.completions.create(
        model="scripted", messages=HELLO, n=3, seed=10, temperature=1
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert sorted(request.sampling.seed for request in backend.requests) == [10, 11, 12]
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 9)


def test_several_choices_stream_side_by_side(client):
    chunks = list(
        client.chat.completions.create(model="scripted", messages=HELLO, n=2, stream=True)
    )
    for index in (0, 1):
        own = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in own) == "Hello dear reader"
        assert own[-1].finish_reason == "stop"


def test_log_probabilities_come_with_bytes_and_alternatives(client):
    ask = client.chat.completions.create
    said = [{"role": "user", "content": "Grüße dich"}]
    done = ask(model="scripted", messages=said, logprobs=True, top_logprobs=2)
    tokens = done.choices[0].logprobs.content
    assert [token.token for token in tokens] == ["Grüße ", "dich"]
    assert tokens[0].bytes == list("Grüße ".encode())
    assert tokens[0].logprob == LOGPROB
    assert [each.token for each in tokens[0].top_logprobs] == ["other1", "other2"]
    stream = ask(model="scripted", messages=said, logprobs=True, stream=True)
    told = [c.choices[0].logprobs for c in stream if c.choices[0].logprobs]
    assert [token.token for each in told for token in each.content] == ["Grüße ", "dich"]
    assert told[0].content[0].top_logprobs == []


class Receipt(BaseModel):
    total: float


def test_schemas_reach_the_model_closed(client, backend):
    backend._chunks = ['{"total": ', "3.5}"]
    ask = client.chat.completions
    parsed = ask.parse(model="scripted", messages=HELLO, response_format=Receipt)
    assert parsed.choices[0].message.parsed == Receipt(total=3.5)
    ask.create(model="scripted", messages=HELLO, response_format={"type": "json_object"})
    ask.create(model="scripted", messages=HELLO, response_format={"type": "text"})
    first, second, third = (request.schema for request in backend.requests)
    assert first["properties"]["total"]["type"] == "number"
    assert first["additionalProperties"] is False
    assert (second, third) == ({"type": "object"}, None)


def test_what_changes_nothing_is_accepted(client):
    done = client.chat.completions.create(
        model="scripted",
        messages=HELLO,
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        user="anna",
        metadata={"a": "b"},
        store=False,
        tools=[],
        tool_choice="none",
        parallel_tool_calls=False,
        service_tier="auto",
    )
    assert done.choices[0].message.content == "Hello dear reader"


def test_models_are_listed_with_their_adapters(client, backend):
    backend.add_adapter("poems", "anywhere")
    assert [model.id for model in client.models.list()] == ["scripted", "poems"]
    assert client.models.retrieve("poems").id == "poems"
    client.chat.completions.create(model="poems", messages=HELLO)
    assert backend.requests[0].adapter == "poems"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"n": 5}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 100_000}, "max_tokens"),
    ],
)
def test_a_wrong_field_is_a_bad_request_that_names_it(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="scripted", messages=HELLO, **fields)
    assert caught.value.param == param
    assert f"'{param}'" in caught.value.message


def test_another_model_is_not_found_and_says_what_there_is(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "scripted" in caught.value.message


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (EngineError("It broke; try again."), 500, "It broke; try again."),
        (MemoryLimitError("Use fewer pictures."), 503, "Use fewer pictures."),
        (ValueError("/home/anna at 0x7f00dead"), 500, "Something went wrong"),
    ],
)
def test_an_error_of_the_model_is_told_in_its_words_or_ours(error, status, told):
    with served(ScriptedBackend(["Well "], error=error)) as server, connect(server) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="scripted", messages=HELLO)
        assert caught.value.status_code == status
        assert told in caught.value.message
        with pytest.raises(openai.APIError) as caught:  # after the text that came before
            texts = []
            for chunk in client.chat.completions.create(
                model="scripted", messages=HELLO, stream=True
            ):
                texts.append(chunk.choices[0].delta.content)
        assert "Well " in texts
        assert told in caught.value.message
    assert "0x" not in str(caught.value) and "/home" not in json.dumps(caught.value.body)


class FullBackend(ScriptedBackend):
    def stream(self, conversation, **options):
        raise BusyError("64 requests are waiting already; try again in a moment.")


def test_a_full_queue_says_when_to_come_again():
    with served(FullBackend()) as server, connect(server) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="scripted", messages=HELLO, stream=True)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.code == "overloaded"


def test_leaving_a_stream_early_ends_the_answer():
    backend = HeldBackend()
    with served(backend) as server, connect(server) as client:
        stream = client.chat.completions.create(model="scripted", messages=HELLO, stream=True)
        backend.say("One ")
        next(iter(stream))
        stream.close()
        client.close()  # the client keeps its connection for the next request
        assert backend.cancelled.wait(60)
