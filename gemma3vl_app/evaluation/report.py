"""`report.html`: one page that loads nothing, with the scores and pictures of the worst cases.

Answers, questions and names are other people's text: it is put in as text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path

from gemma3vl_app.errors import PictureError
from gemma3vl_app.evaluation.items import ALL
from gemma3vl_app.evaluation.metrics.metric import Metric
from gemma3vl_app.evaluation.report_style import REPORT_STYLE
from gemma3vl_app.evaluation.results import Case, Evaluation, Score, telling, write_text
from gemma3vl_app.export.html_page import CONTENT_POLICY, HEAD
from gemma3vl_app.export.html_style import STYLE
from gemma3vl_app.export.pictures import encode_shown
from gemma3vl_app.export.wording import one_line, printable
from gemma3vl_app.lazy_pictures import LazyPicture
from gemma3vl_app.wording import counted

REPORT = "report.html"
WORST_SHOWN = 24
FAILED_SHOWN = 50
_PICTURE_SIDE = 800  # pixels: pages stay readable
_LONGEST_TEXT = 2_000  # characters of an answer
_REFERENCES_SHOWN = 5


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write the page into `folder`."""
    write_text(folder / REPORT, "\n".join(_lines(evaluation)) + "\n")


def delete_report(folder: Path) -> None:
    """Delete the page of an earlier run."""
    with telling(folder / REPORT):
        (folder / REPORT).unlink(missing_ok=True)


def _lines(evaluation: Evaluation) -> Iterator[str]:
    metrics = {metric.name: metric for metric in evaluation.metrics}
    score = evaluation.score
    name = f"{evaluation.suite}: {metrics[score.metric].show(score.value)} {score.metric}"
    yield HEAD.format(policy=CONTENT_POLICY, title=escape(name), style=STYLE + REPORT_STYLE)
    yield f"<body>\n<header>\n<h1>{escape(name)}</h1>"
    yield f"<p>{escape(_subtitle(evaluation))}</p>\n</header>\n<main>"
    for metric in evaluation.metrics:
        yield from _table(metric, [s for s in evaluation.scores if s.metric == metric.name])
    yield from _worst(evaluation)
    yield from _failed(evaluation)
    yield from _facts(evaluation)
    yield "</main>\n<footer>Written by gemma3vl evaluate.</footer>\n</body>\n</html>"


def _subtitle(evaluation: Evaluation) -> str:
    model = evaluation.about["model"]
    words = [model["name"], model["weights"], counted(evaluation.score.items, "item")]
    if evaluation.failed:
        words.append(f"{len(evaluation.failed):,} failed, counted as wrong")
    return " · ".join(one_line(word) for word in words if word)


# --- scores ---------------------------------------------------------------------------------------


def _table(metric: Metric, scores: list[Score]) -> Iterator[str]:
    yield f'<section><h2>{escape(metric.name)}</h2><p class="about">{escape(metric.about)}.'
    yield f"{'' if metric.higher_is_better else ' Less is better.'}</p>"
    yield '<div class="scroll"><table><thead><tr><th scope="col">kind</th>'
    yield '<th scope="col" class="number">items</th><th scope="col" class="number">score</th>'
    yield '<th scope="col" class="number">95 % interval</th>'
    yield '<th scope="col"><span class="hidden">drawn</span></th></tr></thead><tbody>'
    largest = max([1.0, *(score.value for score in scores)]) if metric.percent else 0.0
    largest = largest or max([1e-9, *((s.interval or (0, s.value))[1] for s in scores)])
    for score in scores:
        row = ' class="all"' if score.kind == ALL else ""
        failed = f", {score.failed:,} failed" if score.failed else ""
        yield f'<tr{row}><th scope="row"><bdi>{escape(one_line(score.kind))}</bdi></th>'
        yield f'<td class="number">{score.items:,}{failed}</td>'
        yield f'<td class="number">{metric.show(score.value)}</td>'
        yield f'<td class="number">{show_interval(metric, score)}</td>'
        yield f"<td>{_bar(score, largest)}</td></tr>"
    yield "</tbody></table></div></section>"


def show_interval(metric: Metric, score: Score) -> str:
    """Return "75.1% to 81.2%", or a dash where all items scored the same."""
    if score.interval is None:
        return "-"
    low, high = map(metric.show, score.interval)
    return f"{low} to {high}"


def _bar(score: Score, largest: float) -> str:
    low, high = score.interval or (score.value, score.value)
    at, left, right = (100 * min(1.0, max(0.0, x / largest)) for x in (score.value, low, high))
    return (
        f'<div class="bar" aria-hidden="true"><div style="width:{at:.1f}%"></div>'
        f'<i style="left:{left:.1f}%;width:{max(0.6, right - left):.1f}%"></i></div>'
    )


# --- cases ----------------------------------------------------------------------------------------


def _worst(evaluation: Evaluation) -> Iterator[str]:
    metric = evaluation.metrics[0]
    cases = evaluation.worst(WORST_SHOWN)
    if not cases:
        return
    yield "<section><h2>Where it goes wrong</h2>"
    yield '<p class="about">The worst answers of each kind, in turns.</p>'
    for case in cases:
        yield from _case(case, metric)
    yield "</section>"


def _case(case: Case, metric: Metric) -> Iterator[str]:
    item = case.item
    kinds = f" · {', '.join(item.kinds)}" if item.kinds else ""
    shown = metric.show(case.parts[metric.name].score)
    yield '<article class="case"><div class="pictures">'
    yield from map(_picture, item.pictures)
    yield f'</div><div class="told"><h3><bdi>{escape(one_line(item.id + kinds))}</bdi>'
    yield f' <span class="score">{shown}</span></h3><dl class="plain">'
    options = [f"{x}. {option}" for x, option in zip(item.letters, item.options, strict=True)]
    yield from _row("Asked", "\n".join([item.question, *options]))
    yield from _row("Right", "\n".join(_references(item.answers)))
    yield from _row("Said", case.said or "(nothing)", "said")
    yield "</dl></div></article>"


def _row(name: str, text: str, style: str = "") -> Iterator[str]:
    if text.strip():
        shown = printable(text[:_LONGEST_TEXT]) + (" …" if text[_LONGEST_TEXT:] else "")
        yield f'<dt>{name}</dt><dd class="text {style}" dir="auto" lang="">{escape(shown)}</dd>'


def _references(answers: tuple[str, ...]) -> list[str]:
    """Return the different references, those of several people with their number."""
    counts = {answer: answers.count(answer) for answer in answers}
    told = [f"{answer} ({n} times)" if n > 1 else answer for answer, n in counts.items()]
    more = [f"and {len(told) - _REFERENCES_SHOWN:,} more"] if told[_REFERENCES_SHOWN:] else []
    return told[:_REFERENCES_SHOWN] + more


def _picture(lazy: LazyPicture) -> str:
    try:
        picture = lazy.open()
    except PictureError as error:
        return f'<p class="about">{escape(one_line(str(error)))}</p>'
    encoded = encode_shown(picture, _PICTURE_SIDE)
    data = base64.b64encode(encoded.data).decode("ascii")
    return (
        f'<img alt="{escape(one_line(picture.name) or "picture")}" width="{encoded.width}" '
        f'height="{encoded.height}" src="data:image/{encoded.format};base64,{data}">'
    )


def _failed(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.failed:
        return
    yield f"<section><h2>{counted(len(evaluation.failed), 'item')} without an answer</h2>"
    yield '<p class="about">They count as wrong.</p><ul>'
    for case in evaluation.failed[:FAILED_SHOWN]:
        reason = escape(one_line(case.error or ""))
        yield f"<li><bdi>{escape(one_line(case.item.id))}</bdi>: {reason}</li>"
    yield "</ul>"
    if more := evaluation.failed[FAILED_SHOWN:]:
        yield f"<p>and {len(more):,} more</p>"
    yield "</section>"


# --- what was asked of whom -----------------------------------------------------------------------


def _facts(evaluation: Evaluation) -> Iterator[str]:
    about = evaluation.about
    model, settings = about["model"], about["settings"]
    rows = {
        "Model": model["name"],
        "Revision": model["revision"],
        "Weights": model["weights"],
        "Arithmetic": model["arithmetic"],
        "Adapter": settings["adapter"] or "",
        "Placement": " ".join((about["plan"] or {}).get("reasons", ())),
        "Data": _data(evaluation),
        "Prompt": about["prompt"],
        "Prompt without options": about["free_prompt"],
        "Answers": f"{settings['answers']}, greedy, at most {settings['max_new_tokens']:,} tokens",
        "Crops": settings["crops"],
        "Time": f"{about['seconds']:,.1f} s in the last run",
        "Tokens": _tokens(evaluation),
        "Versions": ", ".join(f"{name} {each}" for name, each in about["versions"].items()),
        "Notes": " ".join(about["notes"]),
    }
    yield "<section><h2>How it was measured</h2><dl>"
    for name, text in rows.items():
        if text:
            yield f"<dt>{name}</dt><dd><bdi>{escape(one_line(text))}</bdi></dd>"
    yield "</dl></section>"


def _data(evaluation: Evaluation) -> str:
    about, asked = evaluation.about["data"], len(evaluation.cases)
    drawn = f", {asked:,} of them drawn by seed {evaluation.about['seed']}"
    parts = (about["name"], about["config"], about["split"], counted(about["items"], "item"))
    return ", ".join(filter(None, parts)) + (drawn if asked < about["items"] else "")


def _tokens(evaluation: Evaluation) -> str:
    """Return the tokens of written answers; a backend tells none for letters that it weighs."""
    tokens = evaluation.about["tokens"]
    told = f"{tokens['prompt_tokens']:,} read, {tokens['completion_tokens']:,} written"
    weighed = len(evaluation.cases) - tokens["items"]
    if not weighed:
        return told
    those = f"those of {counted(weighed, 'question')} whose letters were weighed are not counted"
    return f"{told}; {those}" if tokens["items"] else those
