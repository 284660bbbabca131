"""docs/reliability.md names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"


def test_every_fault_names_tests_that_exist():
    rows = re.findall(r"^\| (?!what|---)(.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    faults = [row.split(" | ") for row in rows if len(row.split(" | ")) == 3]
    assert len(faults) > 15
    for fault, _, shown in faults:
        files = re.findall(r"`([\w/]+\.py)`", shown)
        assert files, fault
        for file in files:
            assert "def test_" in (TESTS / file).read_text(encoding="utf-8"), file
