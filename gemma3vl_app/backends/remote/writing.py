"""An answer that comes in piece by piece: text, tokens, cost and end. Knows nothing of HTTP."""

from __future__ import annotations

import codecs
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gemma3vl_app.backends.remote.failures import about
from gemma3vl_app.backends.remote.requests import Request
from gemma3vl_app.errors import EngineError
from gemma3vl_app.generation import (
    Alternative,
    Answer,
    Chunk,
    FinishReason,
    Status,
    Timing,
    Token,
    Usage,
)
from gemma3vl_app.stream import Stream

NO_ID = 0  # OpenAI's protocol tells what tokens say, not their numbers
_FAILED = {"abort", "error"}


class Writing:
    """One answer: takes a server's events and puts chunks into the stream.

    `pieces` counts what brought text: nothing has come of an answer while it is 0.
    """

    def __init__(self, request: Request, stream: Stream, host: str = "") -> None:
        self.host = host
        self.pieces = 0
        self._request, self._stream = request, stream
        self._cut = _StopCut(request.stop)
        self._tokens: list[Token] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""
        self._reason: str | None = None
        self._usage: dict[str, Any] = {}
        self._started = time.perf_counter()
        self._first_at = self._last_at = 0.0

    def take(self, event: Mapping[str, Any]) -> bool:
        """Take an event; returns whether anything else is wanted of the server."""
        usage = event.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return True
        choice = choices[0]
        said = choice.get("delta") or choice.get("message") or {}
        content = said.get("content") if isinstance(said, dict) else None
        text = content if isinstance(content, str) else ""
        if text and self._cut.is_over:
            return False  # it goes on beyond a stop string
        tokens = self._read_tokens(choice.get("logprobs"), text)
        if text or tokens:
            self._put(text, tokens)
        if isinstance(choice.get("finish_reason"), str):
            self._reason = choice["finish_reason"]
        return True

    def answer(self, *, complete: bool, cancelled: bool = False) -> Answer:
        """Return the whole answer; raises `EngineError` where it is not complete after all."""
        reason = self._finish_reason(complete=complete, cancelled=cancelled)
        if held := self._cut.rest():
            self._text += held
            self._stream.put(Chunk(text=held))
        usage = self._counted()
        decode_sec = self._last_at - self._first_at
        ttft_sec = self._first_at - self._started if self.pieces else 0.0
        return Answer(
            text=self._text,
            finish_reason=reason,
            usage=usage,
            timing=Timing(
                prefill_sec=ttft_sec,
                decode_sec=decode_sec,
                ttft_sec=ttft_sec,
                tokens_per_sec=usage.completion_tokens / decode_sec if decode_sec > 0 else 0.0,
            ),
            tokens=tuple(self._tokens),
        )

    def _put(self, text: str, tokens: Sequence[Token]) -> None:
        self._last_at = time.perf_counter()
        if not self.pieces:
            self._first_at = self._last_at
        self.pieces += 1
        shown = self._cut.feed(text)
        self._text += shown
        self._tokens += tokens
        self._stream.put(Chunk(text=shown, tokens=tuple(tokens), status=Status("decoding")))

    def _finish_reason(self, *, complete: bool, cancelled: bool) -> FinishReason:
        if self._cut.is_over:
            return "stop"
        if cancelled:
            return "cancelled"
        if self._reason in _FAILED or (self._reason is None and not complete):
            what = f"The {{server}} broke the answer off after {len(self._text):,} characters."
            raise about(self.host, EngineError, what, "Ask again.")
        return "length" if self._reason == "length" else "stop"

    def _counted(self) -> Usage:
        """Return the cost as the server tells it; estimated where it tells none, or nonsense."""
        estimate = self._request.estimate
        details = self._usage.get("prompt_tokens_details")
        prompt = _count(self._usage.get("prompt_tokens")) or estimate.prompt_tokens
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        return Usage(
            prompt_tokens=prompt,
            cached_tokens=min(cached, prompt),
            image_tokens=min(estimate.image_tokens, prompt),
            completion_tokens=_count(self._usage.get("completion_tokens"))
            or max(self.pieces, len(self._tokens)),
        )

    # --- tokens ---

    def _read_tokens(self, logprobs: object, text: str) -> list[Token]:
        """Return the tokens of a piece, whose texts add up to `text`."""
        alternatives = self._request.alternatives
        entries = logprobs.get("content") if isinstance(logprobs, dict) else None
        if alternatives is None or not isinstance(entries, list):
            return []
        entries = [entry for entry in entries if isinstance(entry, dict)]
        texts = [self._said(entry) for entry in entries]
        if "".join(texts) != text:  # a server that writes tokens in another form
            texts = [*("" for _ in texts[1:]), text]
        return [
            Token(NO_ID, said, _logprob(entry), _alternatives(entry, alternatives))
            for entry, said in zip(entries, texts, strict=True)
        ]

    def _said(self, entry: Mapping[str, Any]) -> str:
        """Return what a token adds to the text; a character may come in several of them."""
        try:
            return self._decoder.decode(bytes(entry["bytes"]))
        except (KeyError, TypeError, ValueError):
            return str(entry.get("token", ""))


def _logprob(entry: Mapping[str, Any]) -> float | None:
    value = entry.get("logprob")
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _alternatives(entry: Mapping[str, Any], most: int) -> tuple[Alternative, ...]:
    """Return the likeliest other tokens; the one that was written is among what servers list."""
    listed = entry.get("top_logprobs")
    found = [
        Alternative(NO_ID, str(each.get("token", "")), logprob)
        for each in (listed if isinstance(listed, list) else ())
        if isinstance(each, dict) and (logprob := _logprob(each)) is not None
    ]
    return tuple(found[:most])


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


class _StopCut:
    """Cuts a text at the first stop string; what may be the beginning of one is held back.

    Servers do so themselves, but some (transformers serve) leave the stop string in.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.is_over = False
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> str:
        """Return what can be shown."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_over = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((_begun(self._held, stop) for stop in self._stops), default=0)
        at = len(self._held) - keep
        shown, self._held = self._held[:at], self._held[at:]
        return shown

    def rest(self) -> str:
        """Return what was held back and turned out to be no stop string."""
        rest, self._held = self._held, ""
        return rest


def _begun(text: str, stop: str) -> int:
    """Return how many of the last characters of `text` begin `stop`."""
    most = min(len(stop) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
