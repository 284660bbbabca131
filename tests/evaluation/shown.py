"""What the commands of docs/evaluation.md speak of: files, sets of the hub, earlier runs."""

import json
import re
from pathlib import Path

from PIL import Image

import gemma3vl_app as gv
from gemma3vl_app.evaluation import data
from tests.evaluation import published
from tests.evaluation.answering import AnsweringBackend

PAGE = Path(__file__).parents[2].joinpath("docs", "evaluation.md").read_text(encoding="utf-8")
# Each is named in front of its lines.
FILES: dict[str, str] = dict(re.findall(r"`(my-[\w-]+\.jsonl)`:\n\n```text\n(.*?)```", PAGE, re.S))
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


def write_shown(folder: Path, name: str) -> Path:
    """Write a file of the page as it is shown there, and the pictures that it names."""
    for line in FILES[name].splitlines():
        row = json.loads(line)
        for picture in row.get("pictures", [row.get("picture")]):
            Image.new("RGB", (12, 12), "red").save(folder / picture)
    path = folder / name
    path.write_text(FILES[name], encoding="utf-8")
    return path


def prepare(command: list[str], folder: Path, monkeypatch) -> None:
    """Make what `command` speaks of below `folder`, and a hub that has the published sets."""
    import datasets

    for name in FILES.keys() & set(command):
        write_shown(folder, name)
    if "--compare" in command:
        for run in command[command.index("--compare") + 1 :]:
            gv.evaluate(AnsweringBackend(), "scenes", limit=9, out=folder / run)
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, config, *, split: published.dataset(ON_THE_HUB[name, config, split]),
    )
    monkeypatch.setattr(data, "SCENES_OF_A_KIND", 1)
