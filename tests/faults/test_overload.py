"""Four times what a server can take: every reply is right or a refusal with advice, and fair."""

import pytest

from tests.faults.overload import HEALTH_WITHIN_SEC, INSIDE, overload

# How much longer polite callers may wait because a greedy one came. The aim is 2; on two cores that
# others used as well 2.2 was measured over five minutes.
POLITE_FACTOR = 3


@pytest.mark.parametrize("seconds", [5, pytest.param(300, marks=pytest.mark.stress)])
def test_an_overloaded_server_is_exact_bounded_and_fair(tiny, seconds):
    found = overload(tiny, seconds, 4)
    print(found)
    one, many = found["one_greedy_caller"], found["a_crowd"]
    assert found["wrong"] == []
    assert found["different_answers"] > 0.9 * found["answers"]  # they do tell requests apart
    assert set(one["replies"]) == {"200", "429"}
    assert {"200", "503"} <= set(many["replies"]) <= {"200", "429", "503"}
    for stage in (one, many):
        assert stage["refused_without_retry_after"] == 0
        assert stage["most_inside"] <= INSIDE
    assert one["refused_polite"] == 0
    assert min(one["answers_polite"])
    if seconds >= 300:  # in a few seconds chance would decide
        assert one["polite_p95"] < POLITE_FACTOR * one["polite_p95_with_each_other_only"]
        assert one["polite_p95"] < one["greedy_p95"]
        assert min(one["answers_polite"]) > 0.5 * max(one["answers_polite"])
        assert many["callers_without_an_answer"] == 0
        assert found["health_p99"] < HEALTH_WITHIN_SEC
        assert max(stage["memory_growth_mib"] for stage in (one, many)) < 50
