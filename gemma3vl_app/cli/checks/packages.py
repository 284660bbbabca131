"""Python and the packages that the installed distribution requires, against their versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from gemma3vl_app.cli.checks.check import Check
from gemma3vl_app.cli.checks.torch_facts import TorchFacts

SECTION = "Python and packages"
ALWAYS_SHOWN = ("torch", "transformers")

VersionOf = Callable[[str], str | None]


@dataclass(frozen=True)
class Package:
    """A requirement and what is installed of it; `extra` names what it is optional for."""

    requirement: Requirement
    extra: str
    installed: str  # empty: missing
    damaged: bool = False

    @property
    def state(self) -> str:
        """ "good", "missing", "too old", "too new" or "damaged"."""
        if self.damaged:
            return "damaged"
        if not self.installed:
            return "missing"
        wanted, version = self.requirement.specifier, Version(self.installed)
        if wanted.contains(version, prereleases=True):
            return "good"
        floors = [each.version for each in wanted if each.operator in (">=", "==", "~=", ">")]
        return (
            "too old"
            if any(version < Version(floor.removesuffix(".*")) for floor in floors)
            else "too new"
        )


def python(version: str, wanted: str) -> Check:
    """Look whether Python is of a version that this package supports."""
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Check(SECTION, "Python", "good", version)
    message = f"{version} is not supported ({wanted} is). Make a new environment with another."
    return Check(SECTION, "Python", "broken", message, "python3.12 -m venv .venv")


def not_installed() -> Check:
    """Say that the package runs from a folder, without having been installed."""
    message = "gemma3vl-app is not installed, so it is not known which packages it needs."
    return Check(SECTION, "gemma3vl-app", "broken", message, "pip install -e .")


def packages(requires: Sequence[str], extras: Sequence[str], version_of: VersionOf) -> list[Check]:
    """Look at every required package, and at those of extras where they are installed.

    `version_of` returns the version of a name, raises `PackageNotFoundError`, or returns None where
    the package's own data is damaged. What is good is one line, but for the few that matter most.
    """
    found = list(_found(requires, extras, version_of))
    needed = [each for each in found if not each.extra]
    shown = [each for each in needed if each.requirement.name in ALWAYS_SHOWN]
    rest = [each for each in needed if each not in shown]
    checks = [_check(each) for each in shown]
    checks += [_check(each) for each in rest if each.state != "good"]
    good = sum(each.state == "good" for each in rest)
    if rest:
        all_of = "all" if good == len(rest) else f"{good} of"
        message = f"{all_of} {len(rest)} others have versions that fit"
        checks.append(Check(SECTION, "packages", "good", message))
    return checks + list(_optional([each for each in found if each.extra]))


def torch_starts(torch: TorchFacts, pinned: str) -> Check:
    """Look whether torch can be imported at all."""
    if not torch.error:
        return Check(SECTION, "torch starts", "good", "yes")
    line = f'pip install --force-reinstall "{pinned}"'
    return Check(SECTION, "torch starts", "broken", f"No: {torch.error}", line)


def pinned_torch(requires: Sequence[str]) -> str:
    """Return the torch that the package requires, as pip takes it."""
    return next((each for each in requires if each.startswith("torch==")), "torch")


def _found(
    requires: Sequence[str], extras: Sequence[str], version_of: VersionOf
) -> Iterator[Package]:
    for text in requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # pip would not have installed us with it
        extra = _extra(requirement, extras)
        if extra is None:
            continue
        try:
            version = version_of(requirement.name)
            installed, damaged = str(Version(version or "")), False
        except PackageNotFoundError:
            installed, damaged = "", False
        except (InvalidVersion, KeyError, OSError, ValueError):
            installed, damaged = "", True
        yield Package(requirement, extra, installed, damaged)


def _extra(requirement: Requirement, extras: Sequence[str]) -> str | None:
    """Return the extra that asks for it, "" where it is always needed, None where never here."""
    if requirement.marker is None:
        return ""
    asking = ["", *extras]
    return next((e for e in asking if requirement.marker.evaluate({"extra": e})), None)


def _check(package: Package) -> Check:
    requirement, state = package.requirement, package.state
    if state == "good":
        return Check(SECTION, requirement.name, "good", package.installed)
    wanted = f"{requirement.name}{requirement.specifier}"
    message = {
        "missing": f"missing; {wanted} is needed",
        "damaged": f"its files are damaged; {wanted} is needed",
    }.get(state, f"{package.installed} is {state}; {wanted} is needed")
    force = "--force-reinstall " * package.damaged
    return Check(SECTION, requirement.name, "broken", message, f'pip install {force}"{wanted}"')


def _optional(found: Sequence[Package]) -> Iterator[Check]:
    """Sum each extra up; a wrong version is a warning, since only the extra would fail."""
    for extra in dict.fromkeys(package.extra for package in found):
        group = [package for package in found if package.extra == extra]
        missing = [package.requirement.name for package in group if package.state == "missing"]
        for package in group:
            if package.state not in ("good", "missing"):
                wrong = _check(package)
                message = f"{wrong.message} (only for {extra})"
                yield Check(SECTION, wrong.name, "warning", message, wrong.next_step)
        if not missing:
            message = "installed"
        elif len(missing) == len(group):
            message = f"not installed ({', '.join(missing)})"
        else:
            message = f"partly installed; missing are {', '.join(missing)}"
        yield Check(SECTION, f"extra: {extra}", "good", message)
