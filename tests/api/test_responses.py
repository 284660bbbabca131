"""OpenAI's newer endpoint: its basics, with its own client."""

import openai
import pytest

from gemma3vl_app.errors import EngineError
from gemma3vl_app.generation import Greedy
from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.api.servers import picture_url, served


def test_a_text_is_answered(client, backend):
    done = client.responses.create(
        model="scripted", input="Hello dear reader", instructions="Be brief.", temperature=0
    )
    assert (done.output_text, done.status, done.object) == (
        "Hello dear reader",
        "completed",
        "response",
    )
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (5, 3, 8)
    (request,) = backend.requests
    assert request.conversation.system == "Be brief."
    assert request.sampling == Greedy()


def test_pictures_and_earlier_turns_are_input(client, backend):
    first = client.responses.create(model="scripted", input="Hello")
    turns = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        *(item.model_dump() for item in first.output),
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "And this?"},
                {"type": "input_image", "image_url": picture_url(), "detail": "low"},
            ],
        },
    ]
    done = client.responses.create(model="scripted", input=turns)
    conversation = backend.requests[-1].conversation
    assert [message.role for message in conversation.messages] == ["user", "assistant", "user"]
    assert [picture.crops for picture in conversation.pictures] == ["off"]
    assert conversation.system == "Be kind."
    assert done.usage.input_tokens_details.cached_tokens == 0  # another system text


def test_a_stream_has_openais_events_in_their_order(client):
    events = list(client.responses.create(model="scripted", input="Hello dear", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))
    assert "".join(e.delta for e in events if e.type.endswith("text.delta")) == "Hello dear"
    assert events[-1].response.output_text == "Hello dear"


def test_the_stream_helper_of_the_client_works(client):
    with client.responses.stream(model="scripted", input="Hello dear") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "Hello dear"


def test_a_cut_off_answer_is_incomplete(client):
    done = client.responses.create(model="scripted", input="a b c", max_output_tokens=2)
    assert (done.status, done.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    *_, last = client.responses.create(
        model="scripted", input="a b c", max_output_tokens=2, stream=True
    )
    assert last.type == "response.incomplete"


def test_a_schema_is_enforced(client, backend):
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    done = client.responses.create(model="scripted", input="x", text=form)
    assert backend.requests[0].schema == {**schema, "additionalProperties": False}
    assert done.text.format.schema_ == schema


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"extra_body": {"imput": "x"}}, "imput"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input.0.content.0.type",
        ),
        ({"input": [{"type": "reasoning", "role": "user", "content": "x"}]}, "input.0.type"),
    ],
)
def test_what_is_not_supported_is_named(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "scripted", "input": "x", **fields})
    assert caught.value.param == param


def test_a_failure_ends_the_stream_as_the_clients_own_exception():
    backend = ScriptedBackend(["Well "], error=EngineError("It broke; try again."))
    with (
        served(backend) as server,
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(openai.APIError, match="It broke"):
            list(client.responses.create(model="scripted", input="x", stream=True))
        with pytest.raises(openai.InternalServerError, match="It broke"):
            client.responses.create(model="scripted", input="x")
