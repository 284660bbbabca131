"""The models this package knows by name: what each is called and what it can do, for people.

Data, and no more of files than whether a folder exists; knows nothing of tensors or memory.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from gemma3vl_app.addresses import is_address, parse_servers
from gemma3vl_app.errors import LoadError

DEFAULT_ANSWER_TOKENS = 1024
LICENCE = "Gemma Terms of Use"
LICENCE_LINK = "https://ai.google.dev/gemma/terms"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Entry:
    """A model with a name: `title` fits a menu, `knows` is a sentence or two on its skills.

    `size` names its published config, `parameters` counts all of them (`vision_parameters` those of
    the tower), `repo` is where the hub has it (empty: it comes with this package). Hub models are
    gated: the licence has to be accepted on `card`, the model's page. `answer_tokens` is a sensible
    limit for one of its answers.
    """

    name: str
    title: str
    knows: str
    size: str
    parameters: int
    context_tokens: int
    vision_parameters: int = 0
    repo: str = ""
    answer_tokens: int = DEFAULT_ANSWER_TOKENS
    licence: str = LICENCE

    @property
    def pictures(self) -> bool:
        """Whether it takes pictures."""
        return self.vision_parameters > 0

    @property
    def card(self) -> str:
        """The address of its model card."""
        repo = self.repo or "google/gemma-3-270m"
        return f"https://huggingface.co/{repo}"


DEMO = Entry(
    name="demo",
    title="Demo: Gemma 3 270M with a small vision tower",
    knows=(
        "It knows drawings of one to six simple shapes: what, which color, where, how many, in "
        "up to three pictures, follow-up questions included. It reads a few large printed words "
        "and bar charts, knows no photos, and makes mistakes. This is a demo: for anything else "
        "load a larger model, such as 4b-it."
    ),
    size="demo",
    parameters=272_855_552,
    vision_parameters=4_634_304,
    context_tokens=32_768,
    answer_tokens=160,  # the longest comparison it knows; on strange questions it repeats itself
)
BASE_270M = Entry(
    name="270m-pt",
    title="Gemma 3 270M base (text only)",
    knows=(
        "It continues text. It was not trained to chat and takes no pictures; "
        "its weights come from a 4-bit release."
    ),
    size="270m",
    parameters=268_098_176,
    context_tokens=32_768,
)

# Parameters and context of each size, and of its tower: counted on the published configs
# (tests/test_catalog.py counts again with transformers' classes).
_TOWER = 416_866_032
_SIZES = {
    "270m": (268_098_176, 0, 32_768),
    "1b": (999_885_952, 0, 32_768),
    "4b": (4_300_079_472, _TOWER, 131_072),
    "12b": (12_187_325_040, _TOWER, 131_072),
    "27b": (27_432_406_640, _TOWER, 131_072),
}
# Google's releases: ending of the name, what it is, what it knows.
_RELEASES = {
    "it": ("instruction-tuned", "It answers questions and follows instructions"),
    "pt": ("base", "It continues text and was not trained to chat; for fine-tuning"),
    "it-qat-q4_0-unquantized": (
        "instruction-tuned, trained for 4-bit blocks (Q4_0)",
        "It answers questions; its bf16 weights lose little when rounded to Q4_0",
    ),
    "it-qat-int4-unquantized": (
        "instruction-tuned, trained for 4 bits per channel",
        "It answers questions; its bf16 weights lose little when rounded to int4",
    ),
}


def _entry(size: str, release: str) -> Entry:
    parameters, tower, context_tokens = _SIZES[size]
    kind, knows = _RELEASES[release]
    ending = "" if (size, release) == ("270m", "pt") else f"-{release}"
    return Entry(
        name=f"{size}-{release.removesuffix('-unquantized')}",
        title=f"Gemma 3 {size.upper()}, {kind}",
        knows=f"{knows}; {'it takes pictures' if tower else 'text only'}.",
        size=size,
        parameters=parameters,
        vision_parameters=tower,
        context_tokens=context_tokens,
        repo=f"google/gemma-3-{size}{ending}",
    )


MODELS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        DEMO,
        *(_entry(size, "it") for size in _SIZES),
        BASE_270M,
        *(_entry(size, "pt") for size in _SIZES if size != "270m"),
        *(_entry(s, r) for r in _RELEASES if "qat" in r for s in _SIZES if s != "270m"),
    )
}


def find(name: str) -> Entry | None:
    """Return the entry of a name or a hub id, or None."""
    if name in MODELS:
        return MODELS[name]
    return next((entry for entry in MODELS.values() if entry.repo and entry.repo == name), None)


def check_source(source: str | Path, *, servers: bool = False) -> None:
    """Raise `LoadError` unless `source` may be a model; looks at names and whether files exist.

    A model is a name known here, a folder, a GGUF file, or a hub id ("owner/name"); with `servers`
    also the address of a server that has one.
    """
    if is_address(source):
        hosts = parse_servers(str(source)).hosts
        if not servers:
            raise LoadError(
                f"The model at {hosts} is placed and computed by its server; this is for models "
                "that are loaded here. Give a name, such as 4b-it."
            )
        return
    text, path = str(source), Path(source)
    try:
        here = path.expanduser()
        if here.is_dir() or (path.suffix.lower() == ".gguf" and here.is_file()):
            return
    except (OSError, RuntimeError, ValueError):
        pass  # no file can have such a name
    if text in MODELS:
        return
    if HUB_ID.fullmatch(text) and path.suffix.lower() != ".gguf":
        return
    if path.suffix.lower() == ".gguf":
        raise LoadError(f"There is no file {path.name[-80:]!r}. Give the path of a GGUF file.")
    if near := difflib.get_close_matches(text[:80].lower(), MODELS, n=3, cutoff=0.5):
        hint = "Did you mean " + " or ".join(repr(name) for name in near) + "?"
    else:
        hint = "Known names are 'demo', '270m-pt', '4b-it' and others: see `gemma3vl models`."
    raise LoadError(
        f"There is no model or folder {path.name[:80]!r}. {hint} A hub id (owner/name), a Gemma 3 "
        "checkpoint's folder (safetensors) and a GGUF file can be loaded, too."
    )


def published_config(size: str) -> dict[str, Any]:
    """Return the `config.json` that Google published for `size` ("4b"), sparse as it is.

    Values it leaves out are transformers' defaults for the architecture. "demo" is this package's.
    """
    folder = resources.files("gemma3vl_app")
    demo = ("loading", "demo_weights", "config.json")
    path = demo if size == "demo" else ("configs", f"{size}.json")
    return dict(json.loads(folder.joinpath(*path).read_text("utf-8")))
