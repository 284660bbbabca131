"""How explanations look in a notebook: maps, words by how sure they are, layers as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from gemma3vl_app.explain import Certainty, Difference, Heat, Layers
from gemma3vl_app.generation import Alternative
from gemma3vl_app.notebook import thumbnails
from gemma3vl_app.notebook.charts import bars
from gemma3vl_app.notebook.shown import LINE, MUTED, Shown, table
from gemma3vl_app.plain import plain

_SIDE = 320  # pixels of a map on the page
_TINT = "#ff6a00"  # as in the maps
_MOST_ROWS = 5  # of the least certain tokens, listed below an answer
_DIFFERENT_NATS = 0.1  # where two sides differ less at most, the tint stays below full
_LEAST = 0.001  # alternatives less likely than that are not worth a line


def shown_heat(heat: Heat) -> Shown:
    """Return each picture with its heat, and each crop."""
    title = f"{heat.method.capitalize()} of “{heat.words}”"
    figures = []
    for number, picture in enumerate(heat.pictures):
        share = f"{heat.share(number):.0%} of the heat" if len(heat.pictures) > 1 else ""
        line = thumbnails.label(picture, share)
        figures.append(thumbnails.figure(heat.drawn(number, side=_SIDE), line, side=_SIDE))
        parts = heat.drawn_crops(number, side=_SIDE // 2)
        if len(parts) > 1:  # its crops, which the model saw too
            names = ["the whole alone", *(f"crop {n}" for n in range(1, len(parts)))]
            figures += [
                thumbnails.figure(part, name, side=_SIDE // 2)
                for part, name in zip(parts, names, strict=True)
            ]
    against = "; blue: against these words" if heat.signed else ""
    legend = (
        f"the deeper the orange, the more{against}; the strongest part: "
        f"{heat.strongest:.3g} {heat.unit}"
    )
    return Shown(
        f"<div><b>{escape(title)}</b></div>{''.join(figures)}{_says(heat.says, legend)}",
        plain(f"{title}: {heat.says}"),
    )


def shown_certainty(certainty: Certainty) -> Shown:
    """Return the answer tinted where it was unsure, its least certain tokens, and what follows."""
    names: dict[str, float] = {}
    for each in certainty.following:
        name = _visible(each.text)
        name = f"{name} ({each.id})" if name in names else name  # tokens may read alike
        names[name] = 100 * math.exp(each.logprob)
    following = bars(
        names,
        unit="%",
        title="What comes next" if not certainty.tokens else "What would come next",
    )
    if not certainty.tokens:
        return Shown(following.html + _says(certainty.says), following.text)
    answer = "".join(
        _tinted(token.text, 1 - math.exp(token.logprob or 0.0), _choices(token.alternatives))
        for token in certainty.tokens
    )
    unsure = sorted(certainty.tokens, key=lambda token: token.logprob or 0.0)[:_MOST_ROWS]
    rows: list[tuple[str, ...]] = [
        (_visible(token.text), _percent(token.logprob or 0.0), _choices(token.alternatives))
        for token in unsure
    ]
    perplexity = f"perplexity {certainty.perplexity:.2f}"
    head = ("least certain", "probability", "the likeliest")
    return Shown(
        f'<div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9">{answer}</div>'
        f"{table(rows, head, numbers=False)}{_says(certainty.says, perplexity)}",
        plain("\n".join([*("  ".join(row) for row in rows), perplexity])),
    )


def shown_layers(layers: Layers) -> Shown:
    """Return a table with a row for each layer, the last one on top."""
    head = "".join(
        f'<th style="padding:.1em .5em;text-align:left">{escape(_visible(text))}</th>'
        for text in layers.tokens
    )
    rows, lines = [], []
    for number in reversed(range(len(layers.likeliest))):
        name = f"{number} {layers.kinds[number]}"
        cells = [
            _layer_cell(best, real, float(logprob))
            for best, real, logprob in zip(
                layers.likeliest[number], layers.tokens, layers.logprobs[number], strict=True
            )
        ]
        rows.append(
            f'<tr><td style="padding:.1em .8em .1em 0;{MUTED}">{escape(name)}</td>'
            f"{''.join(cells)}</tr>"
        )
        lines.append(f"{name}: {' '.join(_visible(b.text) for b in layers.likeliest[number])}")
    legend = "the deeper the orange, the likelier the layer's own word; framed: the real one"
    return Shown(
        '<div style="overflow-x:auto"><table style="border-collapse:collapse">'
        f"<tr><th></th>{head}</tr>{''.join(rows)}</table></div>{_says(layers.says, legend)}",
        plain("\n".join(lines)),
    )


def shown_difference(difference: Difference) -> Shown:
    """Return the answer tinted where the two sides differ."""
    worst = max(*difference.kl, _DIFFERENT_NATS)
    texts = [*difference.tokens, "(end)"]
    answer = "".join(
        _tinted(text, kl / worst, f"{kl:.4f} nats")
        for text, kl in zip(texts, difference.kl, strict=True)
    )
    same = sum(difference.same_best)
    line = (
        f"mean {sum(difference.kl) / len(difference.kl):.4f} nats, "
        f"most {max(difference.kl):.4f}; the same likeliest token {same} times "
        f"of {len(difference.same_best)}"
    )
    title = f"{difference.sides[1]} against {difference.sides[0]}"
    return Shown(
        f"<div><b>{escape(title)}</b></div>"
        f'<div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9">{answer}</div>'
        f"{_says(difference.says, line)}",
        plain(f"{title}: {line}"),
    )


# --- parts ---


def _says(says: str, legend: str = "") -> str:
    """Return what an explanation shows and does not, below it."""
    line = f"<div>{escape(legend)}</div>" if legend else ""
    return f'<div style="{MUTED};max-width:44em">{line}{escape(says)}</div>'


def _tinted(text: str, strength: float, title: str) -> str:
    """Return text on a tint, none at 0 and the full one at 1; the title comes on hovering."""
    share = round(65 * min(max(strength, 0.0), 1.0))
    return (
        f'<span title="{escape(title, quote=True)}" style="border-radius:.2em;'
        f'background:color-mix(in srgb, {_TINT} {share}%, transparent)">{escape(text)}</span>'
    )


def _layer_cell(best: Alternative, real: str, logprob: float) -> str:
    """Return a table cell: the layer's likeliest token, tinted by how likely, framed if real."""
    share = round(65 * math.exp(best.logprob))
    frame = f"outline:1.5px solid {_TINT}" if best.text == real else f"outline:1px solid {LINE}"
    title = f"{_percent(best.logprob)}; the real token {_percent(logprob)}"
    return (
        f'<td title="{escape(title, quote=True)}" style="padding:.1em .5em;{frame};'
        f'background:color-mix(in srgb, {_TINT} {share}%, transparent)">'
        f"{escape(_visible(best.text))}</td>"
    )


def _choices(alternatives: Sequence[Alternative]) -> str:
    likely = [each for each in alternatives if math.exp(each.logprob) >= _LEAST]
    return ", ".join(f"{_visible(each.text)} {_percent(each.logprob)}" for each in likely)


def _percent(logprob: float) -> str:
    return f"{100 * math.exp(logprob):.1f} %"


def _visible(text: str) -> str:
    """Return a token's text with what cannot be seen shown as signs."""
    shown_text = text.replace("\n", "↵").replace("\t", "⇥")
    return shown_text if shown_text.strip() else shown_text.replace(" ", "␣") or "(nothing)"
