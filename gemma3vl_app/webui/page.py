"""The chat page: pictures and questions in, streamed answers out, in a browser.

Lays out gradio components and wires them to a `Session`. Text of people, models and errors is
shown as text: never as HTML, never as Markdown, so nothing in it can load or run anything. Knows
the backend protocol; knows nothing of engines or HTTP.
"""

from __future__ import annotations

import html
import mimetypes
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from gemma3vl_app.backends.protocol import Backend, Capabilities
from gemma3vl_app.webui.examples import EXAMPLES, save
from gemma3vl_app.webui.session import Draft, Session, Shown, View

# Backends queue on their own and say how many are ahead; these bound what one process holds open.
ANSWERS_AT_ONCE = 32
WAITING_AT_MOST = 64
UPLOADS_CHECKED_EVERY_SEC = 3600
UPLOADS_KEPT_SEC = 24 * 3600

_SYSTEM_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
_SYSTEM_MONO = ["ui-monospace", "monospace"]

# One rule per dark selector: gradio rewrites only the first of a list that begins with .dark.
CSS = """
.gradio-container { max-width: 54rem !important; width: 100% !important; }
.gradio-container { margin: 0 auto !important; }
.gradio-container main { width: 100%; }
#head h1 { font-size: 1.35rem; font-weight: 650; margin: 0.75rem 0 0.1rem; }
#head p, #line p { color: var(--neutral-600); margin: 0; }
.dark #head p { color: var(--neutral-300); }
.dark #line p { color: var(--neutral-300); }
#line { min-height: 1.5rem; }
#line p { font-size: 0.85rem; font-variant-numeric: tabular-nums; }
#line p.error { color: #b91c1c; font-size: 0.95rem; }
.dark #line p.error { color: #fca5a5; }
#chat { border-width: 0 !important; height: calc(100dvh - 25rem) !important; }
@media (max-width: 640px) {
  #head p { font-size: 0.8rem; }
  #chat { height: calc(100dvh - 30rem) !important; }
}
#chat .message-content { white-space: pre-wrap; overflow-wrap: anywhere; }
#chat .message img { max-height: 10rem; width: auto; }
#chat .message-buttons { display: none; }
footer { display: none !important; }
"""

Update = tuple[Any, Any, Any]  # for the chat, the box and the line


def theme() -> gr.themes.Base:
    """Return a quiet theme in the system's own fonts: nothing is fetched from a font service."""
    return gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        font=_SYSTEM_FONTS,
        font_mono=_SYSTEM_MONO,
        radius_size="lg",
    )


def build_page(backend: Backend) -> gr.Blocks:
    """Return the page for `backend`, to be mounted by a server with `theme()` and `CSS`."""
    about = backend.capabilities
    page = gr.Blocks(
        title=f"{about.title or about.model} · gemma3vl",
        analytics_enabled=False,
        delete_cache=(UPLOADS_CHECKED_EVERY_SEC, UPLOADS_KEPT_SEC),
    )
    with page, TemporaryDirectory() as folder:  # the pictures are copied while the page is built
        files = save(Path(folder)) if about.pictures else ()
        _lay_out(page, backend, files)
    page.queue(max_size=WAITING_AT_MOST)
    return page


def _lay_out(page: gr.Blocks, backend: Backend, example_files: tuple[tuple[str, ...], ...]) -> None:
    about = backend.capabilities
    session = gr.State(
        Session(backend), time_to_live=UPLOADS_KEPT_SEC, delete_callback=Session.stop
    )
    gr.HTML(_head(about), elem_id="head")
    chat = _chat(example_files)
    line = gr.HTML(_line(""), elem_id="line")
    box = gr.MultimodalTextbox(
        placeholder="Ask something; add pictures with the clip, or paste or drop them",
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        show_label=False,
        autofocus=True,
        max_plain_text_length=1_000_000,  # pasted text stays text
        elem_id="box",
    )
    clear = gr.Button("New conversation", variant="secondary", size="sm", elem_id="clear")

    drafts = _drafts(chat)

    def send_example(event: gr.SelectData, session: Session) -> Iterator[Update]:
        # Only the number is taken from the browser: the rest of the event could name any file.
        yield from map(_update, session.ask(drafts[int(event.index)]))

    shown = [chat, box, line]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    page.load(lambda: Session(backend), None, session, queue=False, **quiet)
    box.submit(_send, [box, session], shown, concurrency_limit=ANSWERS_AT_ONCE, **quiet)
    chat.example_select(send_example, session, shown, concurrency_limit=ANSWERS_AT_ONCE, **quiet)
    box.stop(Session.stop, session, None, queue=False, **quiet)
    gr.on([clear.click, chat.clear], _clear, session, shown, queue=False, **quiet)


def _chat(example_files: tuple[tuple[str, ...], ...]) -> gr.Chatbot:
    cards: Any = [
        {"text": example.question, "files": list(files)}
        for example, files in zip(EXAMPLES, example_files, strict=False)
    ]
    return gr.Chatbot(
        examples=cards,
        show_label=False,
        render_markdown=False,
        sanitize_html=True,
        allow_tags=False,
        feedback_options=None,
        buttons=[],
        layout="bubble",
        min_height=240,
        placeholder="Try one of these, or ask about pictures of your own.",
        elem_id="chat",
    )


def _drafts(chat: gr.Chatbot) -> list[Draft]:
    """Return the examples as drafts, with the paths gradio serves their pictures from."""
    cards: Any = chat.examples or ()
    return [Draft(c["text"], tuple(file["path"] for file in c["files"])) for c in cards]


def _send(message: dict[str, Any], session: Session) -> Iterator[Update]:
    draft = Draft(message["text"], tuple(message["files"]))
    yield from map(_update, session.ask(draft))


def _clear(session: Session) -> Update:
    return _update(session.clear())


def _update(view: View) -> Update:
    """Turn a view into new values for the chat, the box and the line."""
    box: dict[str, Any] = {"submit_btn": not view.answering, "stop_btn": view.answering}
    if view.draft is not None:
        box["value"] = {"text": view.draft.text, "files": list(view.draft.files)}
    return (
        [_message(shown) for shown in view.messages],
        gr.update(**box),
        _line(view.line, view.is_error),
    )


def _message(shown: Shown) -> dict[str, Any]:
    """Return a message for gradio's chat, which inserts text as HTML even without Markdown."""
    files = [{"type": "file", "file": _file(path)} for path in shown.files]
    text = html.escape(shown.text, quote=False)
    return {"role": shown.role, "content": [*files, {"type": "text", "text": text}]}


def _file(path: str) -> dict[str, Any]:
    name = Path(path).name
    return {"path": path, "orig_name": name, "mime_type": mimetypes.guess_type(name)[0]}


def _head(about: Capabilities) -> str:
    return f"<h1>{html.escape(about.title or about.model)}</h1><p>{html.escape(about.knows)}</p>"


def _line(text: str, is_error: bool = False) -> str:
    kind = "error" if is_error else "quiet"
    return f'<p class="{kind}" role="status">{html.escape(text)}</p>'
