"""The tab that compares: its fields, and what its button does."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import gradio as gr

from gemma3vl_app.errors import Gemma3VLError, public_text
from gemma3vl_app.webui.compare import Side, compare
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.models import WEIGHTS
from gemma3vl_app.webui.sent import settings_of
from gemma3vl_app.webui.visitors import owner_of

_FIELDS = 5  # of one side


def lay_out(desk: Desk, words: gr.I18n, **options: Any) -> None:
    """Put the tab's components here and wire them; `options` are those of its event."""
    about = desk.backend().capabilities
    files = gr.File(
        label=words("pictures"),
        file_count="multiple",
        file_types=["image"],
        height=140,
        visible=about.pictures,
    )
    question = gr.Textbox(label=words("question"), lines=2, elem_id="compare-question")
    button = gr.Button(words("compare"), variant="primary", elem_id="compare-button")
    sides, shown = [], []
    with gr.Row():
        for letter in "AB":
            with gr.Column():
                gr.Markdown(f"## {letter}")
                sides += _side(desk, words, letter)
                answer = gr.Textbox(
                    label=letter, lines=6, interactive=False, elem_id=f"compare-{letter}"
                )
                shown += [answer, gr.HTML(line(""), elem_id=f"compare-line-{letter}")]

    def run(
        request: gr.Request, question: str, files: list[str] | None, *fields: Any
    ) -> Iterator[tuple[str, str, str, str]]:
        try:
            owner = owner_of(request.username, dict(request.cookies))
            pair = side_of(fields[:_FIELDS]), side_of(fields[_FIELDS:])
            for a, b in compare(desk, owner, question, files or (), pair):
                yield a.text, line(a.line), b.text, line(b.line)
        except Gemma3VLError as error:
            yield "", line(public_text(error), is_error=True), "", line("")

    gr.on([button.click, question.submit], run, [question, files, *sides], shown, **options)


def _side(desk: Desk, words: gr.I18n, letter: str) -> list[Any]:
    has_models = desk.models is not None
    names = ["", *(desk.models.names if desk.models else ())]
    with gr.Row():
        model = gr.Dropdown(
            names, value="", label=words("model"), allow_custom_value=True, visible=has_models
        )
        weights = gr.Dropdown(
            list(WEIGHTS), value="auto", label=words("precision"), visible=has_models
        )
    with gr.Row():
        temperature = gr.Textbox(
            label=words("temperature"), elem_id=f"compare-temperature-{letter}"
        )
        crops = gr.Dropdown(["auto", "on", "off"], value="auto", label=words("crops_on"))
        adapter = gr.Textbox(label=words("adapter"), visible=bool(desk.backend().adapters))
    return [model, weights, temperature, crops, adapter]


def side_of(fields: tuple[Any, ...]) -> Side:
    """Return one side as its fields say; raises `ConversationError` for what is no number."""
    model, weights, temperature, crops, adapter = fields
    settings = settings_of(("", temperature, "", "", "", "", False, "", adapter), str(crops))
    return Side(str(model or "").strip(), str(weights or "auto"), settings)


def line(text: str, is_error: bool = False) -> str:
    """Return the line below an answer, as HTML; the text in it is escaped."""
    kind = "error" if is_error else "quiet"
    return f'<p class="{kind}" role="status">{html.escape(text)}</p>'
