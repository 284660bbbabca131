"""The chat page: which components stand where, and what each of them sets off."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.events import api

from gemma3vl_app.backends.protocol import Capabilities
from gemma3vl_app.generation import Greedy, Sampling
from gemma3vl_app.webui import compare_tab
from gemma3vl_app.webui.actions import Actions
from gemma3vl_app.webui.component import asset, drawn
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.programs import asking
from gemma3vl_app.webui.words import LANGUAGES, texts_of

# Backends queue on their own and say how many are ahead; these bound what one process holds open.
ANSWERS_AT_ONCE = 32
WAITING_AT_MOST = 64
PAGES_REMEMBERED = 500  # gradio keeps what each shows; one that is forgotten begins anew
UPLOADS_CHECKED_EVERY_SEC = 3600
UPLOADS_KEPT_SEC = 24 * 3600

_SYSTEM_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
_SYSTEM_MONO = ["ui-monospace", "monospace"]


_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def theme() -> gr.themes.Base:
    """Return a quiet theme in the system's own fonts: nothing is fetched from a font service."""
    return gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        font=_SYSTEM_FONTS,
        font_mono=_SYSTEM_MONO,
        radius_size="lg",
    ).set(  # quiet, but fields and words can be seen by everybody (WCAG AA)
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_title_text_color="*primary_700",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
    )


def css() -> str:
    """Return the page's styles."""
    names = ("page", "conversation", "why", "composer", "shelf", "models")
    return "\n".join(asset(f"{name}.css") for name in names)


def i18n() -> gr.I18n:
    """Return the words of gradio's own components, in all languages."""
    return gr.I18n(**{name: texts_of(words) for name, words in LANGUAGES.items()})


def build_page(desk: Desk) -> gr.Blocks:
    """Return the page for `desk`, to be mounted by a server with `theme()`, `css()`, `i18n()`."""
    about = desk.backend().capabilities
    page = gr.Blocks(
        title=f"{about.title or about.model} · gemma3vl",
        analytics_enabled=False,
        delete_cache=(UPLOADS_CHECKED_EVERY_SEC, UPLOADS_KEPT_SEC),
    )
    with page:
        _lay_out(page, desk, about)
    page.queue(max_size=WAITING_AT_MOST)
    page.state_session_capacity = PAGES_REMEMBERED
    return page


def _lay_out(page: gr.Blocks, desk: Desk, about: Capabilities) -> None:
    words, actions = i18n(), Actions(desk)
    visit = gr.State(None, time_to_live=UPLOADS_KEPT_SEC)
    with gr.Sidebar(width=300, open=True):
        shelf = drawn("shelf")
        settings, fields = _settings(words, about)
    with gr.Tabs(elem_id="tabs"):
        with gr.Tab(words("chat"), id="chat"), gr.Column(elem_id="talk"):
            conversation = drawn("conversation", 'role="log" aria-live="polite"')
            why = drawn("why")
            said = drawn("line")
            composer = drawn("composer")
        if desk.models:
            with gr.Tab(words("models"), id="models") as models_tab:
                models = drawn("models")
        with gr.Tab(words("compare"), id="compare"):
            compare_tab.lay_out(desk, words, **_QUIET, concurrency_limit=ANSWERS_AT_ONCE)

    shown = [visit, conversation, composer, said, shelf]
    quiet = _QUIET
    answers = {**quiet, "concurrency_limit": ANSWERS_AT_ONCE, "trigger_mode": "multiple"}
    api(asking(desk), api_name="ask", concurrency_limit=ANSWERS_AT_ONCE)
    # Not through the queue, which may be full: a page that opens then shows what there is, and says
    # so only when it has to wait.
    opened = page.load(actions.load, None, shown, queue=False, **quiet)
    opened.then(actions.watch, visit, shown, **answers)
    composer.submit(actions.submit, [visit, *fields], shown, **{**answers, "trigger_mode": "once"})
    # Not "always_last": gradio sends the last of several without what it was triggered with.
    composer.weigh(actions.weigh, [visit, *fields], [visit, composer], **answers)
    schema = fields[7]
    composer.preset(actions.preset, schema, [schema, settings], queue=False, **quiet)
    composer.halt(actions.halt, visit, None, queue=False, **quiet)
    conversation.select(actions.on_message, [visit, *fields], shown, **answers)
    why.explain(actions.explain, visit, [visit, why], **answers)
    why.leave(actions.leave, visit, None, queue=False, **quiet)
    shelf.select(actions.on_shelf, visit, shown, **answers)
    if desk.models:
        models_tab.select(actions.show_models, visit, models, **quiet)
        models.select(actions.on_model, visit, [models, shelf, fields[8]], **answers)
    page.load(actions.adapters, None, fields[8], queue=False, **quiet)
    confidence = fields[6]
    confidence.change(
        actions.show_confidence, [visit, confidence], [visit, conversation], queue=False, **quiet
    )


def _settings(words: gr.I18n, about: Capabilities) -> tuple[gr.Accordion, list[Any]]:
    """Return where the settings are, and the fields of `actions.settings_of`, in its order.

    What is empty is left to the model.
    """
    default = _sampling_defaults(about.sampling)
    with gr.Accordion(words("settings"), open=False, elem_id="settings") as settings:
        system = gr.Textbox(label=words("system"), lines=2, max_lines=8)
        # Text fields, not gr.Number: that one sends 0 for a field that was left empty.
        with gr.Row():
            temperature = gr.Textbox(label=words("temperature"), placeholder=default[0])
            top_k = gr.Textbox(label=words("top_k"), placeholder=default[1])
        with gr.Row():
            top_p = gr.Textbox(label=words("top_p"), placeholder=default[2])
            seed = gr.Textbox(label=words("seed"))
        answer_tokens = gr.Textbox(
            label=words("answer_tokens"), placeholder=str(about.answer_tokens)
        )
        confidence = gr.Checkbox(False, label=words("confidence"), visible=about.logprobs)
        schema = gr.Code(
            None, language="json", label=words("schema"), lines=3, visible=about.schema
        )
        adapter = gr.Dropdown(
            [""], value="", label=words("adapter"), allow_custom_value=True, visible=False
        )
    fields = [system, temperature, top_k, top_p, seed, answer_tokens, confidence, schema, adapter]
    return settings, fields


def _sampling_defaults(sampling: Sampling) -> tuple[str, str, str]:
    if isinstance(sampling, Greedy):
        return "0", "", ""
    return str(sampling.temperature), str(sampling.top_k), str(sampling.top_p)
