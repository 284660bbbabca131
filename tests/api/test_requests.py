"""What may be in a request: each wrong thing is named, in our own words, and nothing leaks."""

import base64
import io
import json

import pytest
from PIL import Image

from tests.api.servers import chat_body, picture_url

PRIVATE = "/etc/hostname"


def image(url, **more):
    part = {"type": "image_url", "image_url": {"url": url, **more}}
    return {"messages": [{"role": "user", "content": [part]}]}


def data_url(data: bytes, kind="image/png"):
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def user(content):
    return {"role": "user", "content": content}


BAD = [
    ({"model": None}, "model", "must be a string"),
    ({"messages": []}, "messages", "too few entries"),
    ({"messages": "hi"}, "messages", "must be a list"),
    ({"messages": [user(7)]}, "messages.0.content", "must be a string or a list"),
    ({"messages": [user([])]}, "messages.0.content", "too few entries"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "is missing"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "must be one of"),
    ({"messages": [user([{"type": "input_audio"}])]}, "messages.0.content.0.type", "text, image"),
    (
        {"messages": [user("a"), {"role": "system", "content": "b"}]},
        "messages.1",
        "Put it at the beginning",
    ),
    ({"messages": [{"role": "system", "content": "b"}]}, "messages.0", "no user message"),
    (
        {"messages": [user("a"), {"role": "assistant", "content": "b"}]},
        "messages.1",
        "continue_final_message",
    ),
    ({"continue_final_message": True}, "continue_final_message", "at the end"),
    ({"temperature": "0"}, "temperature", "must be a number"),
    ({"temperature": -0.1}, "temperature", "must be at least 0"),
    ({"top_p": 0}, "top_p", "must be above 0"),
    ({"n": True}, "n", "must be a whole number"),
    ({"n": 10**30}, "n", "limit"),
    ({"seed": 2**63}, "seed", "must be at most"),
    ({"stop": [""]}, "stop.0", "too short"),
    ({"stop": ["x"] * 17}, "stop", "too many"),
    ({"stream": "yes"}, "stream", "must be true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "differ"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "must be one of"),
    ({"logit_bias": {"1": 2}}, "logit_bias", "not supported"),
    ({"frequency_penalty": False}, "frequency_penalty", "not supported"),
    ({"functions": [{}]}, "functions", "no tools"),
    ({"store": True}, "store", "not stored"),
    ({"chat_template": "{{ x }}"}, "chat_template", "not supported"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs", "not supported"),
    ({"max_token": 5}, "max_token", "Did you mean 'max_tokens'?"),
    ({"a\x1b[31m" + "b" * 500: 1}, "a?[31m" + "b" * 94, "no field"),
    (image("https://example.com/a.png"), "messages.0.content.0.image_url.url", "not fetched"),
    (image("http://169.254.169.254/x"), "messages.0.content.0.image_url.url", "data:image/png"),
    (image("file://" + PRIVATE), "messages.0.content.0.image_url.url", "no data URL"),
    (image(PRIVATE), "messages.0.content.0.image_url.url", "no data URL"),
    (image("data:text/plain;base64,aGk="), "messages.0.content.0.image_url.url", "no picture"),
    (image("data:image/png,hello"), "messages.0.content.0.image_url.url", "no picture"),
    (image("data:image/png;base64,%%"), "messages.0.content.0.image_url.url", "damaged"),
    (image(data_url(b"")), "messages", "'picture 1' is empty"),
    (image(data_url(b"hello there")), "messages", "'picture 1' is not a picture"),
    (image(data_url(b"<svg xmlns='x'/>", "image/svg+xml")), "messages", "SVG"),
    (image(picture_url(), detail="ultra"), "messages.0.content.0.image_url.detail", "low"),
]


@pytest.mark.parametrize(
    ("fields", "param", "told"), BAD, ids=[f"{n}-{b[1]}" for n, b in enumerate(BAD)]
)
def test_a_wrong_field_is_named(http, backend, fields, param, told):
    refused = http.post("/v1/chat/completions", json=chat_body(**fields))
    error = refused.json()["error"]
    assert refused.status_code == 400, error
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert told in error["message"]
    assert not backend.requests


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"messages": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 100_000,
    ],
)
def test_what_is_no_json_object_is_refused(http, body):
    headers = {"content-type": "application/json"}
    refused = http.post("/v1/chat/completions", content=body, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_json"


def test_damaged_pictures_leak_nothing(http):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 99).save(buffer, "PNG")
    for data in (buffer.getvalue()[:500], buffer.getvalue()[:40] + b"\x00" * 400):
        refused = http.post("/v1/chat/completions", json=chat_body(**image(data_url(data))))
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "invalid_image"
        for secret in ("0x", "/home", "Traceback", "site-packages", "PIL"):
            assert secret not in refused.text


def test_base64_in_lines_is_read(http):
    url = picture_url()
    broken = "\r\n".join(url[at : at + 60] for at in range(0, len(url), 60))
    assert http.post("/v1/chat/completions", json=chat_body(**image(broken))).status_code == 200


def test_an_answer_can_be_continued(http, backend):
    messages = [user("Count."), {"role": "assistant", "content": "One, "}]
    body = chat_body(messages=messages, continue_final_message=True)
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert backend.requests[0].conversation.messages[-1].text == "One, "


def test_another_sites_page_and_another_host_are_refused(http):
    for origin in ("http://evil.test", "null", "file://"):
        refused = http.post("/v1/chat/completions", json=chat_body(), headers={"origin": origin})
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "foreign"
    assert http.get("/v1/models", headers={"host": "evil.test"}).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/metrics", 405),
        ("GET", "/v1", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/responses/resp_1", 404),
    ],
)
def test_other_paths_and_methods_are_openai_errors(http, method, path, status):
    refused = http.request(method, path)
    assert refused.status_code == status
    assert refused.json()["error"]["message"]
    if status == 405:
        assert refused.headers["allow"]


def test_half_a_character_of_a_model_does_not_break_an_answer(http, backend):
    backend._chunks = ["a\ud800b"]
    done = http.post("/v1/chat/completions", json=chat_body())
    assert json.loads(done.content)["choices"][0]["message"]["content"] == "a?b"
