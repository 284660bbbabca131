"""Alive, ready, and what Prometheus is told."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gemma3vl_app.api import health
from gemma3vl_app.api.keys import Keys
from gemma3vl_app.api.limits import ApiLimits
from gemma3vl_app.api.serving import Api
from gemma3vl_app.backends.protocol import Activity, ReportsActivity
from gemma3vl_app.testing.scripted import ScriptedBackend
from tests.api.servers import chat_body, picture_url


class Reporting(ScriptedBackend):
    now = Activity(0, 0)

    @property
    def activity(self):
        return self.now


def api_of(backend):
    return Api(lambda: backend, keys=Keys(), limits=ApiLimits(stalled_sec=10))


@pytest.mark.parametrize(
    ("activity", "status"),
    [
        (Activity(0, 0), 200),
        (Activity(3, 2, still_sec=9), 200),
        (Activity(3, 2, still_sec=11), 503),
        (Activity(0, 0, alive=False), 503),
    ],
)
def test_ready_means_that_the_engine_makes_progress(activity, status):
    backend = Reporting()
    backend.now = activity
    assert health.readiness(api_of(backend))[0] == status


def test_not_ready_while_shutting_down():
    api = api_of(ScriptedBackend())
    api.gate.close()
    assert health.readiness(api) == (503, {"status": "shutting down"})


def test_alive_and_ready_are_said(http, backend):
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ready"}
    backend.close()
    assert http.get("/healthz").status_code == 200
    assert http.get("/readyz").status_code == 503
    refused = http.post("/v1/chat/completions", json=chat_body())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")


def test_the_scripted_backend_reports_like_the_real_one():
    assert isinstance(ScriptedBackend(), ReportsActivity)


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_tokens_cache_hits_and_phases_are_counted(http):
    part = {"type": "image_url", "image_url": {"url": picture_url()}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "One two"}]}]
    http.post("/v1/chat/completions", json=chat_body(messages=messages))
    messages += [{"role": "assistant", "content": "One two"}, {"role": "user", "content": "Three"}]
    http.post("/v1/chat/completions", json=chat_body(messages=messages, stream=True))
    http.post("/v1/chat/completions", json=chat_body(n=99))
    http.post("/v1/responses", json={"model": "scripted", "input": "Hi"})
    found = samples(http.get("/metrics").text)
    path = "/v1/chat/completions"
    assert found["gemma3vl_requests_total", path, "200"] == 2
    assert found["gemma3vl_requests_total", path, "400"] == 1
    assert found["gemma3vl_requests_total", "/v1/responses", "200"] == 1
    assert found["gemma3vl_tokens_total", "prompt"] == 66 + 69 + 1
    assert found["gemma3vl_tokens_total", "cached"] == 66
    assert found["gemma3vl_tokens_total", "image"] == 2 * 64
    assert found["gemma3vl_tokens_total", "completion"] == 2 + 1 + 1
    assert found["gemma3vl_cache_hits_total",] == 1
    assert found["gemma3vl_answers_total", "stop"] == 3
    assert found["gemma3vl_time_to_first_token_seconds_count",] == 3
    assert found["gemma3vl_open_requests",] == 0
    assert found["gemma3vl_engine_running",] == 0
    assert ("gemma3vl_phase_seconds_total", "prefill") in found
    assert found["process_resident_memory_bytes",] > 0
    assert "One two" not in http.get("/metrics").text
