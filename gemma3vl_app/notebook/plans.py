"""A `LoadPlan` to look at: a bar per device, what is in it, and why."""

from __future__ import annotations

from dataclasses import fields
from html import escape

from gemma3vl_app.notebook.charts import COLOURS
from gemma3vl_app.notebook.shown import FAINT, MUTED, Shown, folded
from gemma3vl_app.plain import plain
from gemma3vl_app.planning import DeviceBytes, LoadPlan

_PURPOSES = {
    "weights": "weights",
    "kv_global": "keys and values, global layers",
    "kv_sliding": "keys and values, sliding layers",
    "vision": "vision tower at work",
    "logits": "scores over the vocabulary",
    "reserve": "reserve",
}
assert set(_PURPOSES) == {field.name for field in fields(DeviceBytes)}
_GIB = 1 << 30


def shown_plan(plan: LoadPlan) -> Shown:
    """Return a plan as bars and as text."""
    verdict = "Fits" if plan.fits else "Does not fit"
    head = f"{verdict}: {plan.weights} weights, {plan.dtype} arithmetic"
    if plan.context_tokens:
        head += f", {plan.context_tokens:,} tokens of context"
    bars = "".join(_bar(plan, device) for device in plan.bytes_by_device)
    why = "".join(f"<li>{escape(line)}</li>" for line in (*plan.reasons, *plan.ways))
    html = (
        f"<div><b>{escape(head)}</b>{bars}{_legend(plan)}"
        f"{folded('Why', f'<ul>{why}</ul>') if why else ''}</div>"
    )
    devices = [f"{name}: {_filled(plan, name)}" for name in plan.bytes_by_device]
    text = "\n".join([head, *devices, *(f"- {line}" for line in (*plan.reasons, *plan.ways))])
    return Shown(html, plain(text))


def gib(count: int) -> str:
    """Return bytes as GiB."""
    return f"{count / _GIB:.1f} GiB"


def _filled(plan: LoadPlan, device: str) -> str:
    limit = plan.limits_by_device.get(device)
    return gib(plan.bytes_by_device[device].total) + (f" of {gib(limit)}" if limit else "")


def _bar(plan: LoadPlan, device: str) -> str:
    held = plan.bytes_by_device[device]
    limits = plan.limits_by_device
    full = max(held.total, limits.get(device, 0), 1)
    longest = max(
        *(max(each.total, limits.get(name, 0)) for name, each in plan.bytes_by_device.items()), 1
    )
    parts = "".join(
        f'<div title="{_PURPOSES[name]}: {gib(count)}" '
        f'style="width:{100 * count / full:.2f}%;background:{COLOURS[n]}"></div>'
        for n, name in enumerate(_PURPOSES)
        if (count := getattr(held, name))
    )
    return (
        f'<div style="margin:.3em 0"><span style="{MUTED}">{escape(device)} · '
        f"{escape(_filled(plan, device))}</span>"
        f'<div style="display:flex;height:1.1em;background:{FAINT};border-radius:.2em;'
        f'overflow:hidden;width:{max(2.0, 100 * full / longest):.2f}%">{parts}</div></div>'
    )


def _legend(plan: LoadPlan) -> str:
    used = [
        (COLOURS[n], words)
        for n, (name, words) in enumerate(_PURPOSES.items())
        if any(getattr(each, name) for each in plan.bytes_by_device.values())
    ]
    marks = "".join(
        f'<span style="margin-right:1em"><span style="color:{colour}">■</span> {words}</span>'
        for colour, words in used
    )
    return f'<div style="{MUTED}">{marks}</div>'
