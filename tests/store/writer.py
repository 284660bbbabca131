"""Write into a store: `python -m tests.store.writer FOLDER NAME WRITES`, begun by a line on stdin.

One conversation in five writes is new; the others grow by a turn. Pictures are the same for all
writers, and each writer deletes every tenth conversation.
"""

import sys
from pathlib import Path

from gemma3vl_app.store import ConversationStore, database
from tests.conversation_file.chats import drawn
from tests.store.talks import talk

TURNS = 5
PICTURES = [drawn(shade) for shade in range(7)]


def said(name: str, conversation: int, turns: int):
    texts = (f"{name} {conversation} {place}" for place in range(turns))
    return talk(*texts, pictures=[PICTURES[conversation % 7]])


def main(folder: str, name: str, writes: str) -> None:
    database.SYNCHRONOUS = "OFF"
    with ConversationStore(Path(folder)) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        for conversation in range(int(writes) // TURNS):
            id = store.create(name, said(name, conversation, 1)).id
            for turns in range(2, TURNS + 1):
                store.save(name, id, said(name, conversation, turns))
            if conversation % 10 == 9:
                store.delete(name, id)


if __name__ == "__main__":
    main(*sys.argv[1:])
