"""What the commands of docs/evaluation.md speak of: files, sets of the hub, earlier runs."""

from pathlib import Path

import gemma3vl_app as gv
from gemma3vl_app.evaluation import data
from tests.evaluation import published
from tests.evaluation.answering import AnsweringBackend, write_jsonl

FILES = {
    "my-questions.jsonl": {"picture": "a.png", "question": "What?", "answer": "red"},
    "my-choices.jsonl": {"picture": "a.png", "question": "?", "options": ["x", "y"], "answer": "B"},
    "my-pages.jsonl": {"picture": "a.png", "text": "All of it."},
}
ON_THE_HUB = {
    ("lmms-lab/DocVQA", "DocVQA", "validation"): published.DOCVQA,
    ("lmms-lab/textvqa", None, "validation"): published.TEXTVQA,
    ("lmms-lab/VQAv2", None, "validation"): published.VQAV2,
    ("lmms-lab/ChartQA", None, "test"): published.CHARTQA,
    ("HuggingFaceM4/ChartQA", None, "test"): published.CHARTQA_M4,
    ("echo840/OCRBench", None, "test"): published.OCRBENCH,
    ("lmms-lab/COCO-Caption2017", None, "val"): published.COCO,
    ("lmms-lab/MMMU", None, "validation"): published.MMMU,
    ("MMMU/MMMU", "Accounting", "validation"): published.MMMU,
}


def prepare(command: list[str], folder: Path, monkeypatch) -> None:
    """Make what `command` speaks of below `folder`, and a hub that has the published sets."""
    import datasets

    for name in FILES.keys() & set(command):
        write_jsonl(folder, FILES[name], name=name)
    if "--compare" in command:
        for run in command[command.index("--compare") + 1 :]:
            gv.evaluate(AnsweringBackend(), "scenes", limit=9, out=folder / run)
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, config, *, split: published.dataset(ON_THE_HUB[name, config, split]),
    )
    monkeypatch.setattr(data, "SCENES_OF_A_KIND", 1)
