"""/v1/openapi.json: it says what is accepted, and requests made from it are answered as it says."""

import httpx
import pytest
import schemathesis

from gemma3vl_app.api.requests import ChatCompletionRequest
from gemma3vl_app.api.response_requests import ResponseRequest
from gemma3vl_app.api.routes import CHAT, MODELS, OPENAPI, RESPONSES
from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.api.described import send
from tests.api.servers import served


@pytest.fixture(scope="module")
def address():
    with served(ScriptedBackend(), requests_per_minute=10**9) as server:
        yield server.address


def test_the_description_is_valid_openapi_and_names_every_field(address):
    described = httpx.get(address + OPENAPI).json()
    schemathesis.openapi.from_dict(described).validate()
    assert set(described["paths"]) == {CHAT, RESPONSES, MODELS, MODELS + "/{name}"}
    for request in (ChatCompletionRequest, ResponseRequest):
        fields = described["components"]["schemas"][request.__name__]["properties"]
        assert {*request.model_fields, *request.neutral, *request.left_aside} == set(fields)


def test_requests_made_from_the_description_are_answered_as_it_says(address):
    seen = send(address, each=60, model="scripted")
    assert seen["fitting", CHAT, 200] and seen["fitting", RESPONSES, 200]
    assert seen["breaking", CHAT, 400] >= 55 and seen["breaking", RESPONSES, 400] >= 55


def test_a_whole_number_may_be_written_with_a_point(address):
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
    with httpx.Client(base_url=address) as client:
        assert client.post(CHAT, json={**body, "max_tokens": 8.0}).status_code == 200
        assert client.post(CHAT, json={**body, "max_tokens": 8.5}).status_code == 400


def test_the_name_of_a_speaker_changes_nothing(address):
    said = {"role": "user", "content": "Hi", "name": "anna"}
    body = {"model": "scripted", "messages": [said]}
    assert httpx.post(address + CHAT, json=body).status_code == 200


@pytest.mark.parametrize("path", [MODELS + "/a%0Ab", "/v1/a%0Ab", MODELS + "/%0A"])
def test_a_path_with_a_line_break_is_answered_as_any_other(address, path):
    refused = httpx.get(address + path)
    assert refused.status_code == 404
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
