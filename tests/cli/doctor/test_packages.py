"""What the doctor says of Python and of the packages."""

import pytest

from gemma3vl_app.cli.checks import packages
from tests.cli.doctor.looking import (
    HERE,
    REQUIRES,
    named,
    seen,
    version_of,
)


@pytest.mark.parametrize(
    ("version", "state"),
    [("3.11.7", "good"), ("3.13.0rc1", "good"), ("3.10.1", "broken"), ("3.14.0", "broken")],
)
def test_python_is_held_against_the_supported_versions(version, state):
    assert packages.python(version, "<3.14,>=3.11").state == state


def test_good_packages_are_summed_up_and_the_most_important_shown():
    checks = packages.packages(REQUIRES, ["train"], version_of(HERE))
    assert seen(checks) == dict.fromkeys(
        ["torch", "transformers", "packages", "extra: train"], "good"
    )
    assert named(checks, "torch").message == "2.13.0+cpu"
    assert "not installed (datasets, trl)" in named(checks, "extra: train").message


@pytest.mark.parametrize(
    ("name", "version", "told", "next_step"),
    [
        ("torch", "2.12.1", "2.12.1 is too old", 'pip install "torch==2.13.0"'),
        ("torch", "2.14.0", "2.14.0 is too new", 'pip install "torch==2.13.0"'),
        ("transformers", "6.0", "6.0 is too new", 'pip install "transformers<6,>=5.23"'),
        ("pillow", "12.2.9", "12.2.9 is too old", 'pip install "pillow<13,>=12.3"'),
        ("pillow", "absent", "missing", 'pip install "pillow<13,>=12.3"'),
        ("pillow", None, "damaged", 'pip install --force-reinstall "pillow<13,>=12.3"'),
        ("pillow", "?", "damaged", 'pip install --force-reinstall "pillow<13,>=12.3"'),
    ],
)
def test_a_wrong_package_is_broken_with_the_pip_line(name, version, told, next_step):
    installed = {**HERE, name: version}
    if version == "absent":
        del installed[name]
    checks = packages.packages(REQUIRES, ["train"], version_of(installed))
    assert [check.name for check in checks if check.state != "good"] == [name]
    check = named(checks, name)
    assert (check.state, check.next_step) == ("broken", next_step)
    assert told in check.message


def test_a_wrong_package_of_an_extra_is_only_a_warning():
    installed = {**HERE, "datasets": "3.0", "trl": "1.0"}
    checks = packages.packages(REQUIRES, ["train"], version_of(installed))
    check = named(checks, "datasets")
    assert (check.state, check.next_step) == ("warning", 'pip install "datasets<6,>=4"')


def test_a_requirement_that_cannot_be_read_stops_nothing():
    checks = packages.packages(["!!!", *REQUIRES], ["train"], version_of(HERE))
    assert named(checks, "torch").state == "good"
