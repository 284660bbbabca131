"""`make sabotage`: every control is taken out once; fails unless a test notices each time."""

from __future__ import annotations

import sys
import time

from tests.sabotage.controls import CONTROLS
from tests.sabotage.page import PAGE, renewed
from tests.sabotage.run import check_whole, copied, take_out


def main(wanted: list[str]) -> int:
    """Try the controls whose words hold one of `wanted`, or all; return the exit code."""
    chosen = [c for c in CONTROLS if not wanted or any(w in f"{c.threat} {c.says}" for w in wanted)]
    start, missed = time.monotonic(), 0
    with copied() as copy:
        if said := check_whole(copy, chosen):
            print(said, "With every control in place these tests must pass.", sep="\n")
            return 1
        for number, control in enumerate(chosen, start=1):
            result = take_out(control, copy)
            missed += result.verdict != "noticed"
            print(f"{number:3} {result.verdict:12} {control.threat}: {control.says}", flush=True)
            if result.says:
                print(result.says)
    seconds = time.monotonic() - start
    print(f"{len(chosen) - missed} of {len(chosen)} noticed, in {seconds:.0f} s")
    if not wanted and not missed:
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
