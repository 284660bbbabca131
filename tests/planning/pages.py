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


# --- docs/scaling.md: an engine that shards a model over GPUs ---

SERVED = {"12b": "12b-it", "27b": "27b-it"}
CONTEXTS = (2048, 8192, 32768)
USED = 0.9  # of each GPU's memory: what vLLM takes unless it is told otherwise
SETUPS = (  # GPUs, memory of each in GB as it is sold
    ("1 x 80 GB (H100, A100)", 1, 80),
    ("2 x 24 GB (RTX 4090)", 2, 24),
    ("4 x 24 GB", 4, 24),
    ("2 x 80 GB", 2, 80),
    ("8 x 80 GB (8 x H100)", 8, 80),
    ("two machines of 8 x 80 GB", 16, 80),
)


def weights_bytes(size: str) -> int:
    """Return the bytes of a size's weights in bf16."""
    model = architecture(catalog.published_config(size))
    return sum(weight_bytes(part, "bf16", "bfloat16") for part in (*model.home, *model.layers))


def user_bytes(size: str, context: int, *, windows: bool) -> int:
    """Return keys and values of one conversation: sliding layers hold a window, or everything."""
    model = architecture(catalog.published_config(size))
    held = [
        context if window is None or not windows else min(context, window)
        for window in model.windows
    ]
    return 2 * sum(held) * model.kv_heads * model.head_dim * 2


def per_user_table() -> str:
    """Return what weights and one conversation take."""
    lines = [
        "| size | weights | each token, global layers | sliding layers, once | a user with 2,048 "
        "tokens | 8,192 | 32,768 | without windows, 8,192 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in SERVED:
        model = architecture(catalog.published_config(size))
        layer = 2 * model.kv_heads * model.head_dim * 2
        sliding = sum(layer * window for window in model.windows if window)
        cells = (
            size.upper(),
            gib(weights_bytes(size)),
            f"{layer * model.windows.count(None) >> 10} KiB",
            f"{sliding >> 20} MiB",
            *(f"{user_bytes(size, each, windows=True) >> 20:,} MiB" for each in CONTEXTS),
            f"{user_bytes(size, 8192, windows=False) >> 20:,} MiB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def users_table() -> str:
    """Return how many conversations fit at once, by hardware, size and length."""
    heads = " | ".join(f"{size.upper()}, {each:,}" for size in SERVED for each in CONTEXTS)
    lines = [f"| GPUs | {heads} |", f"|---|{'---|' * len(SERVED) * len(CONTEXTS)}"]
    for name, count, sold_gb in SETUPS:
        cells = [_users(size, each, count, sold_gb) for size in SERVED for each in CONTEXTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _users(size: str, context: int, count: int, sold_gb: int) -> str:
    machine = gpus("h100")  # for what the runtime and one chunk of reading take
    reserve = plan(SERVED[size], machine=machine).bytes_by_device["cuda:0"].reserve
    model = architecture(catalog.published_config(size))
    tower = 2 * model.vision_parameters
    each = int(USED * sold_gb * 10**9) - reserve - tower  # the tower may stand on every GPU
    free = count * each - (weights_bytes(size) - tower)
    if free <= 0:
        return "does not fit"
    found = [free // user_bytes(size, context, windows=windows) for windows in (True, False)]
    return f"{found[0]:,} ({found[1]:,})"


TABLES = {
    "scaling.md": {"per user": per_user_table, "users": users_table},
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
