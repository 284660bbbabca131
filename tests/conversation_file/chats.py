"""Transcripts to save, and conversation files to damage."""

import json
import zipfile
from pathlib import Path

import numpy as np

from gemma3vl_app.generation import Greedy, Sample, Timing, Usage
from gemma3vl_app.messages import Message, Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.transcript import ROOT, Generated, ModelIdentity, Transcript, Turn

MODEL = ModelIdentity(name="demo", revision="files:1", tokenizer_sha256="ab", weights="fp32")


def drawn(shade: int, name: str = "a.png") -> Picture:
    return Picture.open(np.full((4, 6, 3), shade, dtype=np.uint8), name=name)


def generated(text: str = "Red.", **fields) -> Generated:
    return Generated(
        **{
            "ids": (3, 4, 5),
            "said_tokens": 2,
            "text": text,
            "finish_reason": "stop",
            "model": MODEL,
            "usage": Usage(5, 1, 2, 2),
            "timing": Timing(0.1, 0.2, 0.3, 0.4, 0.5, 6.7),
            **fields,
        }
    )


def chat() -> Transcript:
    """Two branches, two pictures (one of them twice), one answer resumed."""
    return Transcript(
        turns=(
            Turn(Message("user", (drawn(10), Text("Which?"), drawn(20, "b.png"))), ROOT),
            Turn(Message("assistant", (Text("Red."),)), 0, (generated(),)),
            Turn(
                Message("assistant", (Text("It is red."),)),
                0,
                (
                    generated("It is", sampling=Sample(seed=7), finish_reason="length"),
                    generated(" red.", schema={"type": "object"}, adapter="poet", stop=("!",)),
                ),
            ),
            Turn(Message("user", (drawn(10, "again.png").with_crops("off"), Text("Sure?"))), 2),
        ),
        head=2,
        system="Be brief.\n",
        sampling=Sample(temperature=0.7, top_k=5, top_p=0.5),
    )


GREEDY = Greedy()


def repacked(path: Path, change) -> Path:
    """Write the file again with `change(document)` made to its conversation.json."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(entries["conversation.json"])
    entries["conversation.json"] = json.dumps(change(document) or document).encode()
    return packed(path, entries)


def packed(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path
