"""The measured tables of docs/faithfulness.md, made of what the commands there wrote.

gemma3vl verify demo --against fp32 --json docs/faithfulness-demo.json
python -m tests.faithfulness.pages
"""

import json
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "faithfulness.md"
MODELS = ("demo", "wide")
OFF = "fast paths of loading off"


def results(model: str) -> list[dict]:
    """What was measured of a model: one entry for each form, path and crop mode."""
    file = PAGE.with_name(f"faithfulness-{model}.json")
    return json.loads(file.read_text(encoding="utf-8"))["results"]


def forms_table(found: list[dict]) -> str:
    """One line for each form of the weights: the worst of all its paths."""
    lines = [
        "| weights | places | difference | mean KL | max KL | same top-1 | own pass | features |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for form in forms(found):
        rows = [each for each in found if each["weights"] == form]
        measured = [each["agreement"] for each in rows if each["agreement"]]
        if not measured:
            lines.append(f"| {form} | not measured |" + " |" * 6)
            continue
        own = [each["own_pass"]["mean_kl"] for each in rows if each["own_pass"]]
        features = [each["features_error"] for each in rows if each["features_error"] is not None]
        kept = min(measured, key=lambda each: each["kept"] / max(each["decided"], 1))
        cells = (
            f"{sum(each['positions'] for each in measured):,}",
            number(max(each["max_difference"] for each in measured)),
            number(max(each["mean_kl"] for each in measured)),
            number(max(each["max_kl"] for each in measured)),
            f"{kept['kept']:,} of {kept['decided']:,}",
            number(max(own, default=None)),
            number(max(features, default=None)),
        )
        lines.append(f"| {form} | {' | '.join(cells)} |")
    return "\n".join(lines)


def paths_table(found: list[dict]) -> str:
    """One line for each path: mean KL in each form, pictures whole / cropped."""
    shown = [form for form in forms(found) if any(row_of(found, form))]
    lines = [f"| path | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    for path in dict.fromkeys(name(each) for each in found if each["agreement"]):
        cells = [cell(found, form, path) for form in shown]
        lines.append(f"| {path} | {' | '.join(cells)} |")
    return "\n".join(lines)


def forms(found: list[dict]) -> list[str]:
    """The forms, in the order in which they were measured."""
    return list(dict.fromkeys(each["weights"] for each in found))


def row_of(found: list[dict], form: str) -> list[bool]:
    """Whether each result of a form has figures."""
    return [each["agreement"] is not None for each in found if each["weights"] == form]


def name(result: dict) -> str:
    """A path's name; without the fast paths of loading it is another one."""
    return f"{result['path']}, {OFF}" if OFF in result["note"] else result["path"]


def cell(found: list[dict], form: str, path: str) -> str:
    """Mean KL with crops off / on; a dash where the path is not gone in that form."""
    measured = {
        each["crops"]: each["agreement"]["mean_kl"]
        for each in found
        if each["agreement"] and each["weights"] == form and name(each) == path
    }
    return " / ".join(number(measured.get(crops)) for crops in ("off", "on")) if measured else "-"


def number(value: float | None) -> str:
    """Two digits; what the page calls a table's cell."""
    return "-" if value is None else "0" if value == 0 else f"{value:.2g}"


def tables(model: str) -> str:
    """Both tables of a model, as they stand in the page between its marks."""
    found = results(model)
    return f"{forms_table(found)}\n\n{paths_table(found)}"


def shown(text: str, model: str) -> str:
    """What the page shows of a model."""
    return re.search(rf"<!-- {model} -->\n\n(.*?)\n\n<!-- end of {model} -->", text, re.S)[1]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for model in MODELS:
        text = text.replace(shown(text, model), tables(model))
    PAGE.write_text(text, encoding="utf-8")
