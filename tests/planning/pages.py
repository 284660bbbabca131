"""The tables of docs/models.md and docs/memory.md, written by the planner itself.

Run `python -m tests.planning.pages` in the repository's root to write them anew.
"""

import re
from pathlib import Path

from gemma3vl_app import catalog
from gemma3vl_app.planning import LoadPlan, plan
from gemma3vl_app.planning.architecture import architecture
from gemma3vl_app.planning.memory import weight_bytes
from gemma3vl_app.planning.wishes import gib
from tests.planning.machines import WITH_BF16, apple, gpus, processor

DOCS = Path(__file__).parents[2] / "docs"
SIZES = ("4b", "12b", "27b")
STORED = {"bf16": "bfloat16", "int8": "bfloat16", "nf4": "bfloat16"}
MACHINES = {
    "16 GiB GPU (RTX 4080)": gpus("rtx-4080"),
    "24 GiB GPU (RTX 4090)": gpus("rtx-4090"),
    "two of them": gpus("2xrtx-4090"),
    "four of them": gpus("4xrtx-4090"),
    "80 GiB GPU (A100), or eight": gpus("8xa100-80"),
    "T4 (no bf16)": gpus("t4"),
    "two T4": gpus("2xt4"),
    "Mac, 16 GiB": apple(16),
    "Mac, 64 GiB": apple(64),
    "CPU with bf16, 32 GiB free": processor(32, WITH_BF16),
    "other CPU, 32 GiB free": processor(32),
    "other CPU, 16 GiB free": processor(16),
}


def sizes_table() -> str:
    """Return the sizes: what they consist of, and what their weights take."""
    lines = [
        "| size | parameters | vision tower | layers (global) | width | heads (keys) | context "
        "| bf16 | int8 | nf4 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in dict.fromkeys(entry.size for entry in catalog.MODELS.values()):
        model = architecture(catalog.published_config(size))
        parts = (*model.home, *model.layers)
        stored = [gib(sum(weight_bytes(p, w, dtype) for p in parts)) for w, dtype in STORED.items()]
        cells = (
            size,
            f"{model.parameters:,}",
            f"{model.vision_parameters:,}" if model.vision else "none",
            f"{len(model.layers)} ({model.windows.count(None)})",
            f"{model.hidden:,}",
            f"{model.heads} ({model.kv_heads})",
            f"{model.context_tokens:,}",
            *stored,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def names_table() -> str:
    """Return the names, each with its card and what it knows."""
    lines = ["| name | card | what it is |", "|---|---|---|"]
    for entry in catalog.MODELS.values():
        card = f"[{entry.card.removeprefix('https://huggingface.co/')}]({entry.card})"
        note = "" if entry.repo else " (comes with this package)"
        lines.append(f"| `{entry.name}` | {card}{note} | {entry.knows} |")
    return "\n".join(lines)


def machines_table() -> str:
    """Return what the planner decides for each machine and size."""
    lines = ["| machine | 4B | 12B | 27B |", "|---|---|---|---|"]
    for name, machine in MACHINES.items():
        fits = [_decision(plan(f"{size}-it", machine=machine)) for size in SIZES]
        lines.append(f"| {name} | {' | '.join(fits)} |")
    return "\n".join(lines)


def _decision(found: LoadPlan) -> str:
    if not found.fits:
        return "does not fit"
    held = found.bytes_by_device.items()
    return f"{found.weights} on " + ", ".join(f"{device} ({gib(b.total)})" for device, b in held)


TABLES = {
    "models.md": {"sizes": sizes_table, "names": names_table},
    "memory.md": {"machines": machines_table},
}


def marked(name: str) -> re.Pattern[str]:
    """Return the pattern of a marked place."""
    return re.compile(rf"(<!-- {name}: begin -->\n)(.*?)(\n<!-- {name}: end -->)", re.DOTALL)


def table_in(page: str, name: str) -> str:
    """Return what a page has between the marks of that name."""
    found = marked(name).search((DOCS / page).read_text(encoding="utf-8"))
    assert found is not None, f"docs/{page} has no place marked {name}"
    return found[2]


def write() -> None:
    """Write every table into its page."""
    for page, tables in TABLES.items():
        path = DOCS / page
        text = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            new = table()
            text = marked(name).sub(lambda found, new=new: found[1] + new + found[3], text)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
