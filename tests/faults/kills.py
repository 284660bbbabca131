"""Kill a server while people chat with it, again and again, and look at what is left.

`python -m tests.faults.kills FOLDER KILLS SEED` prints figures as JSON. Several clients go on with
their conversations until the kill cuts them off. What the server had told them as sent or answered
must be there afterwards, and the next request be answered soon.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from pathlib import Path

import httpx

from tests.faults.chat_server import ChatServer, answer, send
from tests.faults.next_answer import NEXT_WITHIN_SEC, SLOWER
from tests.store.talks import is_intact

CLIENTS = 3


class Client(threading.Thread):
    """Somebody who chats until the server is gone.

    `texts` are those of its conversation that the server acknowledged, `begun` what was under way.
    """

    def __init__(self, number: int, id: str | None, texts: list[str]) -> None:
        super().__init__(daemon=True)
        self.number, self.id, self.texts = number, id, texts
        self.begun: list[str] = []
        self.acknowledged = 0

    def chat(self, server: ChatServer, rng: random.Random) -> None:
        """Begin to chat, sometimes anew."""
        self.server, self.seed = server, rng.random()
        self.start()

    def run(self) -> None:
        rng = random.Random(self.seed)
        try:
            with self.server.client() as client:
                while True:
                    text = f"{self.number} says " + "and so on " * rng.randint(1, 12) + "."
                    self.begun = [text, text]  # the backend echoes
                    self.id = str(send(client, self.id, text)["id"])
                    self.texts.append(self.begun.pop(0))
                    self.acknowledged += 1
                    said = answer(client, self.id)
                    assert said["texts"][-1] == text and not said["is_error"], said
                    self.texts.append(self.begun.pop(0))
                    self.acknowledged += 1
        except httpx.TransportError:
            pass  # the kill


def check(
    server: ChatServer, chats: dict[str, list[str]], ids: set[str], begun: dict[str, list[str]]
) -> None:
    """Compare conversations with what was acknowledged; what was begun is there or not."""
    with server.client() as client:
        for id in ids:
            known = chats[id]
            found = answer(client, id)["texts"]
            possible = [known + begun.get(id, [])[:count] for count in range(3)]
            assert found in possible, f"lost of {id}: {known[len(found) - 3 :]} not in {found[-3:]}"
            chats[id] = found


def main(folder: str, kills: str, seed: str) -> None:
    rng = random.Random(int(seed))
    chats: dict[str, list[str]] = {}
    last: dict[str, list[str]] = {}
    begun: dict[str, list[str]] = {}
    acknowledged, waits = 0, []
    for kill in range(int(kills) + 1):
        restarted = time.monotonic()
        server = ChatServer(Path(folder))
        with server.client() as client:
            body = {"model": "scripted", "messages": [{"role": "user", "content": "Still there?"}]}
            reply = client.post("/v1/chat/completions", json=body)
        waits.append(time.monotonic() - restarted)
        assert reply.json()["choices"][0]["message"]["content"] == "Still there?"
        chats.update(last)
        check(server, chats, set(chats if kill == int(kills) else last), begun)
        clients = []
        for number in range(CLIENTS):
            id = rng.choice(list(chats)) if chats and rng.random() < 0.7 else None
            if id in [each.id for each in clients] or len(chats.get(id or "", [])) > 40:
                id = None
            clients.append(Client(number, id, list(chats.get(id or "", []))))
        for each in clients:
            each.chat(server, rng)
        time.sleep(rng.uniform(0.05, 0.8))
        server.kill()
        for each in clients:
            each.join()
        assert is_intact(Path(folder)), "the database is damaged"
        acknowledged += sum(each.acknowledged for each in clients)
        last = {each.id: each.texts for each in clients if each.id}
        begun = {each.id: each.begun for each in clients if each.id}
    waits.sort()
    figures = {
        "kills": int(kills),
        "acknowledged": acknowledged,
        "conversations": len(chats),
        "next_answer_sec_median": round(waits[len(waits) // 2], 2),
        "next_answer_sec_longest": round(waits[-1], 2),
        "next_answers_too_late": sum(wait > NEXT_WITHIN_SEC * SLOWER for wait in waits),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
