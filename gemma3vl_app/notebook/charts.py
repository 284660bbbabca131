"""Bars and curves as SVG that takes its text colour from the notebook: for light and dark alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from gemma3vl_app.notebook.shown import LINE, Shown

# Okabe and Ito's, told apart by most eyes, and seen on white and on black.
COLOURS = ("#3b8fd0", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#8c8c8c")
_WIDTH, _ROW, _LABEL = 640, 26, 170
_HEIGHT, _MARGIN, _TICKS = 260, 54, 4


def bars(values: Mapping[str, float], *, unit: str = "", title: str = "") -> Shown:
    """Return one bar per value, longest against the width, each with its number."""
    longest = max(values.values(), default=0) or 1
    room = _WIDTH - _LABEL - 110
    rows = []
    for n, (name, value) in enumerate(values.items()):
        y = n * _ROW + 4
        length = max(1.0, room * value / longest)
        rows.append(
            _text(_LABEL - 8, y + 14, name, anchor="end")
            + f'<rect x="{_LABEL}" y="{y}" width="{length:.1f}" height="{_ROW - 8}" rx="3" '
            f'fill="{COLOURS[0]}"/>' + _text(_LABEL + length + 6, y + 14, _number(value, unit))
        )
    return _drawing(title, len(values) * _ROW + 4, "".join(rows), _listed(values, unit))


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str = "",
    up: str = "",
    title: str = "",
) -> Shown:
    """Return lines through (x, y) points, with a legend; 0 is on both axes."""
    points = [point for line in series.values() for point in line]
    wide, high = _range(x for x, _ in points), _range(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        right, up = (x - wide[0]) / (wide[1] - wide[0]), (y - high[0]) / (high[1] - high[0])
        return _MARGIN + (_WIDTH - _MARGIN - 20) * right, _HEIGHT - 40 - (_HEIGHT - 60) * up

    drawn = [_axes(place, wide, high, across, up)]
    for n, (name, line) in enumerate(series.items()):
        colour = COLOURS[n % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
            f'<rect x="{_MARGIN + 12}" y="{18 * n + 12}" width="12" height="12" fill="{colour}"/>'
            + _text(_MARGIN + 30, 18 * n + 22, name)
        )
    last = {name: line[-1][1] for name, line in series.items() if line}
    return _drawing(title, _HEIGHT, "".join(drawn), _listed(last, up))


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Return the least and the most that an axis shows."""
    known = [0.0, *values]
    return min(known), max(known) if max(known) > min(known) else min(known) + 1


def _axes(
    place: Callable[[float, float], tuple[float, float]],
    wide: tuple[float, float],
    high: tuple[float, float],
    across: str,
    up: str,
) -> str:
    drawn = []
    for n in range(_TICKS + 1):
        x_at = wide[0] + (wide[1] - wide[0]) * n / _TICKS
        y_at = high[0] + (high[1] - high[0]) * n / _TICKS
        x, y = place(x_at, high[0])
        left, height = place(wide[0], y_at)
        drawn += [
            f'<line x1="{left:.1f}" y1="{height:.1f}" x2="{_WIDTH - 20}" y2="{height:.1f}" '
            f'style="stroke:{LINE}"/>',
            _text(x, y + 16, _number(x_at, ""), anchor="middle"),
            _text(left - 6, height + 4, _number(y_at, ""), anchor="end"),
        ]
    drawn.append(_text(_WIDTH - 20, _HEIGHT - 6, f"{across} →", anchor="end"))
    drawn.append(_text(_MARGIN, 10, f"↑ {up}", anchor="middle"))
    return "".join(drawn)


def _text(x: float, y: float, words: str, *, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" '
        f'font-size="12" font-family="system-ui,sans-serif">{escape(words)}</text>'
    )


def _drawing(title: str, height: float, inside: str, text: str) -> Shown:
    head = f"<div><b>{escape(title)}</b></div>" if title else ""
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title or text)}" '
        f'style="width:100%;max-width:{_WIDTH}px;height:auto">{inside}</svg>'
    )
    return Shown(head + svg, "\n".join(filter(None, (title, text))))


def _listed(values: Mapping[str, float], unit: str) -> str:
    return "\n".join(f"{name}: {_number(value, unit)}" for name, value in values.items())


def _number(value: float, unit: str) -> str:
    """Return three digits that matter, and the unit."""
    digits = 0 if not value or abs(value) >= 100 else max(0, 2 - math.floor(math.log10(abs(value))))
    words = f"{value:,.{digits}f}"
    if "." in words:
        words = words.rstrip("0").rstrip(".")
    return f"{words} {unit}".strip()
