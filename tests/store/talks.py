"""Transcripts to store, and what is to be seen of a store from outside."""

import sqlite3
from pathlib import Path

from gemma3vl_app.messages import Message, Text
from gemma3vl_app.store import database
from gemma3vl_app.transcript import ROOT, Transcript, Turn
from tests.conversation_file.chats import generated


def talk(*texts: str, pictures=()) -> Transcript:
    """A chat without branches: a question with the pictures, its answer, and so on."""
    turns: list[Turn] = []
    for place, text in enumerate(texts):
        if place % 2:
            turns.append(Turn(Message("assistant", (Text(text),)), place - 1, (generated(text),)))
        else:
            parts = (*(pictures if not place else ()), Text(text))
            turns.append(Turn(Message("user", parts), place - 1))
    return Transcript(tuple(turns), len(turns) - 1 if turns else ROOT)


def texts(transcript: Transcript) -> list[str]:
    return [turn.message.text for turn in transcript.turns]


def bytes_of(folder: Path) -> bytes:
    """All bytes of all files below a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def picture_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / database.PICTURES).iterdir())


def ask(folder: Path, query: str):
    """Ask the database something behind the store's back."""
    db = sqlite3.connect(folder / database.DATABASE)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def is_intact(folder: Path) -> bool:
    return ask(folder, "PRAGMA integrity_check") == [("ok",)] and not ask(
        folder, "PRAGMA foreign_key_check"
    )
