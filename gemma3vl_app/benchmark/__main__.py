"""`python -m gemma3vl_app.benchmark [--small] [--only NAME]`: tables for people, JSON for programs.

The whole set writes docs/bench.json and the table of docs/performance.md, and exits 1 on a missed
target. `--only` measures one function of `measurements` and leaves the other figures of the file as
they are. `--small` is the set that fits into continuous integration, held to 70 % of its targets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gemma3vl_app.benchmark import measurements
from gemma3vl_app.benchmark.result import Result
from gemma3vl_app.hardware import choose_dtype, default_device, detect

BENCH_FILE = Path("docs/bench.json")
PAGE_FILE = Path("docs/performance.md")
TABLE = re.compile(r"(<!-- bench: begin[^\n]*-->\n).*(<!-- bench: end -->)", re.DOTALL)
SMALL_SHARE = 0.7


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gemma3vl_app.benchmark", description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="the small set, at 70 %% of its targets"
    )
    names = [measure.__name__ for measure in measurements.ALL]
    parser.add_argument("--only", choices=names, action="append", help="measure this alone")
    options = parser.parse_args()
    share = SMALL_SHARE if options.small else 1.0
    chosen = measurements.SMALL if options.small else measurements.ALL
    if options.only:
        chosen = tuple(each for each in chosen if each.__name__ in options.only)
    results = [result for measure in chosen for result in measure()]
    Console(width=150).print(table(results, share))
    run = {**circumstances(), "results": [as_dict(result, share) for result in results]}
    if not options.small:
        kept = json.loads(BENCH_FILE.read_text(encoding="utf-8"))["runs"] if options.only else []
        report = {"runs": [*without(kept, {result.name for result in results}), run]}
        BENCH_FILE.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        page = PAGE_FILE.read_text(encoding="utf-8")
        PAGE_FILE.write_text(with_table(page, report), encoding="utf-8")
    sys.stdout.write(json.dumps(run) + "\n")
    return 0 if all(result.met(share) for result in results) else 1


def without(runs: list[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    """Return earlier runs without the results called `names`, and without runs that are empty."""
    left = [
        {**run, "results": [each for each in run["results"] if each["name"] not in names]}
        for run in runs
    ]
    return [run for run in left if run["results"]]


def table(results: list[Result], share: float) -> Table:
    """Return the results as a table for people."""
    shown = Table("measured", "value", "against", "baseline", "ratio", "target", "")
    for result in results:
        shown.add_row(
            result.name,
            f"{result.value:.4g} {result.unit}",
            result.baseline_name,
            f"{result.baseline:.4g} {result.unit}",
            f"{result.ratio:.3g}",
            f"{result.bound} {result.target:.3g}",
            "met" if result.met(share) else "missed",
        )
    return shown


def with_table(page: str, report: dict[str, Any]) -> str:
    """Return `page` with a report's runs as tables between its two marks."""
    tables = "\n\n".join(_run_table(run) for run in report["runs"])
    return TABLE.sub(lambda marks: marks[1] + tables + "\n" + marks[2], page)


def _run_table(run: dict[str, Any]) -> str:
    rows = [
        f"Measured {run['date']} at {run['commit']}: {run['cpu_cores']} cores, "
        f"{run['memory_gib']} GiB, torch {run['torch']}; {run['arithmetic']}",
        "",
        "| measured | value | against | baseline | ratio | target |",
        "|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {each['name']} | {each['value']:.3g} {each['unit']} | {each['baseline_name']} "
        f"| {each['baseline']:.3g} {each['unit']} | {each['ratio']:.2g} "
        f"| {each['bound']} {each['target']:.2g}{'' if each['met'] else ', missed'} |"
        for each in run["results"]
    ]
    return "\n".join(rows)


def as_dict(result: Result, share: float) -> dict[str, Any]:
    """Return a result as JSON-ready data, ratio and verdict included."""
    return {**dataclasses.asdict(result), "ratio": result.ratio, "met": result.met(share)}


def circumstances() -> dict[str, Any]:
    """Return where and when this was measured."""
    machine = detect()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_cores": machine.cpu_count,
        "arithmetic": choose_dtype(default_device(machine), machine)[1],
        "memory_gib": round(machine.memory_bytes / (1 << 30), 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())
