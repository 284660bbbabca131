"""The table of controls in docs/security.md, made from `controls`."""

from __future__ import annotations

from pathlib import Path

from tests.sabotage.controls import CONTROLS

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
START, END = "<!-- controls: make sabotage -->\n", "<!-- end of controls -->\n"


def table() -> str:
    """Return the table as Markdown."""
    rows = ["| against | control | in | test that fails without it |", "|---|---|---|---|"]
    for control in CONTROLS:
        file, _, name = control.test.partition("::")
        test = (
            f"`{Path(file).name}` {name.partition('[')[0].removeprefix('test_').replace('_', ' ')}"
        )
        rows.append(f"| {control.threat} | {control.says} | `{control.file}` | {test} |")
    return "\n".join(rows) + "\n"


def renewed(page: str) -> str:
    """Return the page with the table as it is now."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table()}\n{END}{after}"
