"""Four times what a server can take: every reply is right or a refusal with advice, and fair."""

import pytest

from tests.faults.overload import HEALTH_WITHIN_SEC, INSIDE, overload


@pytest.mark.parametrize("seconds", [5, pytest.param(300, marks=pytest.mark.stress)])
def test_an_overloaded_server_is_exact_bounded_and_fair(tiny, seconds):
    found = overload(tiny, seconds, 4)
    print(found)
    assert set(found["replies"]) <= {"200", "429", "503"}
    assert found["replies"]["200"] and found["replies"]["429"]
    assert found["mixed"] == found["refused_without_retry_after"] == 0
    assert found["refused_polite"] == 0
    assert found["most_inside"] <= INSIDE
    assert min(found["answers_polite"])
    if seconds >= 300:  # in a few seconds chance would decide
        assert found["polite_p95"] < found["greedy_p95"]
        assert min(found["answers_polite"]) > 0.5 * max(found["answers_polite"])
        assert found["health_p99"] < HEALTH_WITHIN_SEC
        assert found["memory_growth_mib"] < 50
