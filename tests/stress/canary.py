"""A question about a good picture; its greedy answer must stay what it was, whatever comes between.

Each asking has a key of its own. Caches are kept apart by key, so the answer is computed each time:
the picture is decoded and goes through the tower, prompt and answer go through the model.
"""

from __future__ import annotations

import base64
from typing import Any

from tests.faults.model_process import client_of
from tests.picture_files import encoded, photo

MOST = 100  # askings of one server
KEYS = [f"key-number-{number}-of-the-canary" for number in range(MOST)]
PICTURE = encoded(photo(120, 80), "JPEG")
TOKENS = 8


def data_url(data: bytes) -> str:
    """The bytes of a picture, as a request has them."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def asked_about(data: bytes, text: str, **fields: Any) -> dict[str, Any]:
    """The body of a greedy request about a picture."""
    picture = {"type": "image_url", "image_url": {"url": data_url(data)}}
    content = [picture, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return {"model": "tiny", "messages": messages, "temperature": 0, **fields}


class Canary:
    """Asks the server at an address, which takes `KEYS`; its first answer is the one to stay."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.times = 0
        self._expected = self._ask()

    def check(self, after: str) -> None:
        """Ask again; `after` says what came before, for the message."""
        assert self._ask() == self._expected, f"another answer to the same question after {after}"

    def _ask(self) -> bytes:
        body = asked_about(PICTURE, "Which colours are in it?", max_tokens=TOKENS)
        with client_of(self._address, KEYS[self.times]) as client:
            reply = client.post("/v1/chat/completions", json=body)
        self.times += 1
        assert reply.status_code == 200, reply.text
        found = reply.json()
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        return found["choices"][0]["message"]["content"].encode()
