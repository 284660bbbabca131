"""How a request's progress and an answer's end are said to people, the same on every surface."""

from __future__ import annotations

from gemma3vl_app.generation import Answer, Status

ENDED = {"stop": (), "length": ("cut at the limit",), "cancelled": ("stopped",)}


def describe(status: Status) -> str:
    """Say in a few words where a request stands."""
    match status.stage:
        case "queued":
            return f"waiting, {status.done} ahead" if status.done else "waiting"
        case "vision":
            return f"looking at picture {status.done} of {status.total}"
        case "prefill":
            return f"reading {status.done:,} of {status.total:,} tokens"
        case "tracing":
            return f"tracing, {status.done:,} of {status.total:,} steps"
        case "decoding":
            return "writing"


def summary(answer: Answer) -> str:
    """Say in one line how an answer ended and what it cost."""
    usage, timing = answer.usage, answer.timing
    return " · ".join(
        (
            *ENDED[answer.finish_reason],
            counted(usage.completion_tokens, "token"),
            f"{usage.prompt_tokens:,} in the prompt, {usage.cached_tokens:,} of them cached",
            f"first word after {timing.ttft_sec:.2f} s",
            f"{timing.tokens_per_sec:.{0 if timing.tokens_per_sec >= 10 else 1}f} tokens/s",
        )
    )


def breakdown(answer: Answer) -> str:
    """Return where the time went, part by part; parts that took none are left out."""
    timing = answer.timing
    parts = (
        ("opening pictures", timing.decode_image_sec),
        ("looking at them", timing.vision_sec),
        ("reading", timing.prefill_sec),
        ("writing", timing.decode_sec),
    )
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts if seconds >= 0.005)


def counted(number: int, what: str) -> str:
    """Return "1 token" or "1,000 tokens"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def sentence(text: str) -> str:
    """Return `text` with its first letter large."""
    return text[:1].upper() + text[1:]
