"""What an answer cost, in words."""

from gemma3vl_app.generation import Answer, Timing, Usage
from gemma3vl_app.wording import breakdown, summary


def answer(**timing: float) -> Answer:
    return Answer("Yes.", "stop", Usage(), Timing(**timing))


def test_time_is_told_part_by_part_and_parts_without_any_are_left_out():
    told = breakdown(answer(decode_image_sec=0.02, vision_sec=0.4, prefill_sec=0.001, decode_sec=2))
    assert told == "opening pictures 0.02 s, looking at them 0.40 s, writing 2.00 s"
    assert breakdown(answer()) == ""


def test_slow_answers_are_told_with_a_decimal_and_quick_ones_without():
    assert "0.4 tokens/s" in summary(answer(tokens_per_sec=0.41))
    assert "13 tokens/s" in summary(answer(tokens_per_sec=13.4))
