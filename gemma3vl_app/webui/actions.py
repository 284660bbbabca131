"""What happens on the server for each thing that a person does on the page.

Turns what the page's components send into calls of a `Tab`, and its views into what the components
are drawn from.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from gemma3vl_app.errors import ConversationError, Gemma3VLError, public_text
from gemma3vl_app.webui import composer, conversation_view, shelf, why_view
from gemma3vl_app.webui.desk import Desk
from gemma3vl_app.webui.drafts import Weighed
from gemma3vl_app.webui.explanation import METHODS
from gemma3vl_app.webui.live_chat import OUR_FAULT
from gemma3vl_app.webui.sent import named_texts, number_of, settings_of, text_of
from gemma3vl_app.webui.tab import Tab
from gemma3vl_app.webui.view import DEFAULTS, EMPTY, Draft, Settings, View
from gemma3vl_app.webui.visitors import owner_of, visitor_of
from gemma3vl_app.webui.words import Words, texts_of, words_for
from gemma3vl_app.webui.written_answer import Clicked

Update = tuple[Any, ...]  # visit, conversation, composer, line, shelf
_log = logging.getLogger(__name__)


@dataclass
class Visit:
    """One open page: what it shows, in which language, and what was last asked and found there.

    Several events may be under way for it. Whatever changes or reads what it shows holds `lock`.
    """

    tab: Tab
    words: Words
    draft_number: int = 0
    weighed: tuple[int, Weighed] = (0, Weighed())
    query: str = ""
    settings: Settings = DEFAULTS
    view: View = EMPTY
    lock: threading.RLock = field(default_factory=threading.RLock)
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def order(self) -> tuple[str, int]:
        """Return what tells the page which of two values is the newer one.

        Gradio delivers the values of two events in either order.
        """
        return self.name, next(self.numbers)


class Actions:
    """The page's handlers; each yields new values for all components that it is wired to."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    # --- the page ---

    def load(self, request: gr.Request) -> Update:
        """Show the conversation that the address names, or a new one."""
        visit = self._begin(request, None)
        view = visit.view if visit.view.is_error else visit.tab.view
        return self._update(visit, view, with_shelf=True)

    def watch(self, request: gr.Request, visit: Visit | None) -> Iterator[Update]:
        """Show how an answer grows that was already being written when the page was loaded."""
        visit = self._visit(request, None, visit)
        if visit.view.answering:
            yield from self._shown(visit, visit.tab.watch())
        else:
            yield (gr.skip(),) * 5

    # --- the box ---

    def submit(
        self, event: gr.EventData, request: gr.Request, visit: Visit | None, *fields: Any
    ) -> Iterator[Update]:
        """Send what was written, and show the answer."""
        visit = self._visit(request, event, visit)
        text = text_of(event, "text")
        try:
            visit.settings = settings_of(fields, text_of(event, "crops"))
            draft = Draft(text, self._desk.uploaded(getattr(event, "files", None)))
        except Gemma3VLError as error:
            yield self._told(visit, public_text(error))
            return
        yield from self._shown(visit, visit.tab.ask(draft, visit.settings))

    def weigh(
        self, event: gr.EventData, request: gr.Request, visit: Visit | None, *fields: Any
    ) -> Update:
        """Say what the box's pictures and words would cost."""
        visit = self._visit(request, event, visit)
        try:
            settings = settings_of(fields, text_of(event, "crops"))
            files = self._desk.uploaded(getattr(event, "files", None))
            weighed = visit.tab.weigh(Draft(text_of(event, "text"), files), settings)
        except Gemma3VLError as error:
            weighed = Weighed(None, error=public_text(error))
        with visit.lock:
            number = number_of(event, "number")
            if number >= visit.weighed[0]:  # a later question may have been answered first
                visit.weighed = number, weighed
            return visit, self._composer(visit)

    def preset(
        self, event: gr.EventData, schema: str | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the settings' schema becomes with a ready-made question, and its accordion.

        Others than the one for data ask for plain text. A schema that somebody wrote stays theirs.
        """
        written = (schema or "").strip()
        if text_of(event, "key") != composer.WITH_SCHEMA:
            return gr.update(value=None) if written == composer.SCHEMA else gr.skip(), gr.skip()
        return gr.update(value=written or composer.SCHEMA), gr.update(open=True)

    def halt(self, request: gr.Request, visit: Visit | None) -> None:
        """Stop the answer."""
        if visit is not None:
            self._visit(request, None, visit).tab.stop()

    # --- the messages ---

    def on_message(
        self, event: gr.EventData, request: gr.Request, visit: Visit | None, *fields: Any
    ) -> Iterator[Update]:
        """Do what a button at a message asks for."""
        visit = self._visit(request, event, visit)
        try:
            visit.settings = settings_of(fields, visit.settings.crops)
        except ConversationError as error:
            yield self._told(visit, public_text(error))
            return
        tab, settings = visit.tab, visit.settings
        action, index = text_of(event, "action"), number_of(event, "index")
        views: Iterable[View]
        match action:
            case "again":
                views = tab.regenerate(settings)
            case "continue":
                views = tab.resume(settings)
            case "edit":
                views = tab.edit(index, text_of(event, "text"), settings)
            case "switch":
                views = [tab.switch(index, number_of(event, "version"))]
            case "undo":
                views = [tab.undo()]
            case "example" if 0 <= index < len(self._desk.examples):
                views = tab.ask(self._desk.examples[index], settings)
            case _:
                views = []
        yield from self._shown(visit, views)

    def show_confidence(self, visit: Visit | None, wanted: bool) -> Update:
        """Colour the words of the answer that is there, or no longer."""
        if visit is None:
            return visit, gr.skip()
        with visit.lock:
            visit.settings = replace(visit.settings, confidence=wanted)
            return visit, self._conversation(visit)

    def explain(
        self, event: gr.EventData, request: gr.Request, visit: Visit | None
    ) -> Iterator[tuple[Visit, dict[str, Any]]]:
        """Show why a word of an answer is there; yields the visit and the panel's values."""
        visit = self._visit(request, event, visit)
        number, index = number_of(event, "number"), number_of(event, "index")
        wished = text_of(event, "method")
        span = number_of(event, "start"), number_of(event, "stop")
        clicked = Clicked(index, *span, text_of(event, "word"))
        method = next((name for name in METHODS if name == wished), METHODS[0])
        before = visit.view.messages[: max(0, index)]
        for found in visit.tab.explain(clicked, method, number):
            yield (
                visit,
                why_view.as_values(
                    *(found, visit.words),
                    number=number,
                    word=clicked.word,
                    files=[file for shown in before for file in shown.files],
                ),
            )

    def leave(self, event: gr.EventData, request: gr.Request, visit: Visit | None) -> None:
        """Look no longer for why a word is there."""
        if visit is not None:
            self._visit(request, event, visit).tab.leave(number_of(event, "number"))

    # --- the list ---

    def on_shelf(
        self, event: gr.EventData, request: gr.Request, visit: Visit | None
    ) -> Iterator[Update]:
        """Do what a button in the list of conversations asks for."""
        visit = self._visit(request, event, visit)
        try:
            yield from self._on_shelf(visit, event)
        except Gemma3VLError as error:
            yield self._told(visit, public_text(error))
        except Exception:
            _log.exception("an action on the list of conversations failed")
            yield self._told(visit, OUR_FAULT)

    def _on_shelf(self, visit: Visit, event: gr.EventData) -> Iterator[Update]:
        tab, library, id = visit.tab, self._desk.library, text_of(event, "id")
        match text_of(event, "action"):
            case "new":
                yield self._update(visit, tab.new(), with_shelf=True)
            case "open":
                yield from self._shown(visit, tab.open(id))
            case "delete":
                yield self._update(visit, tab.delete(id), with_shelf=True)
            case "rename":
                library.rename(tab.owner, id, text_of(event, "title"))
                yield self._listed(visit)
            case "pin":
                library.pin(tab.owner, id, getattr(event, "pinned", None) is True)
                yield self._listed(visit)
            case "search":
                visit.query = text_of(event, "query")
                yield self._listed(visit)
            case "export":
                transcript = library.open(tab.owner, id).live.transcript
                file = shelf.write_out(transcript, text_of(event, "kind"), self._desk.exports)
                yield self._listed(visit, file)
            case "import":
                (file,) = self._desk.uploaded([getattr(event, "file", None)])
                opened = shelf.bring_in(library, tab.owner, file)
                yield self._update(visit, tab.take_over(opened), with_shelf=True)

    # --- the models ---

    def show_models(self, request: gr.Request, visit: Visit | None) -> dict[str, Any]:
        """Show what there is, what fits, and what is loaded."""
        owner = owner_of(request.username, dict(request.cookies))
        assert self._desk.models is not None  # the page has them then only
        return self._desk.models.as_values(owner, _words(request))

    def adapters(self) -> dict[str, Any]:
        """Return what the settings' choice of adapters becomes; a single one is chosen."""
        names = self._desk.backend().adapters
        chosen = names[0] if len(names) == 1 else ""
        return gr.update(choices=["", *names], value=chosen, visible=bool(names))

    def on_model(
        self, event: gr.EventData, request: gr.Request, visit: Visit | None
    ) -> Iterator[Update]:
        """Change models, or plan one anew; yields models, the list's values, and adapters."""
        models = self._desk.models
        assert models is not None
        visit = self._visit(request, event, visit)
        owner, wishes = visit.tab.owner, named_texts(event, "wishes")
        action, name = text_of(event, "action"), text_of(event, "name")
        said = ""
        try:
            if action in ("use", "unload"):
                for said in models.act(owner, action, name, text_of(event, "weights")):
                    yield models.as_values(owner, visit.words, wishes, said), gr.skip(), gr.skip()
            elif action == "adapter":
                said = models.add_adapter(owner, text_of(event, "text"))
        except Gemma3VLError as error:
            said = public_text(error)
        except Exception:
            _log.exception("changing models failed")
            said = OUR_FAULT
        values = models.as_values(owner, visit.words, wishes, said)
        changed = action in ("use", "adapter")
        yield values, self._shelf(visit, ""), self.adapters() if changed else gr.skip()

    # --- inside ---

    def _visit(self, request: gr.Request, event: gr.EventData | None, visit: Visit | None) -> Visit:
        """Return the visit that a page has sent, if it is theirs and not of a former server.

        Gradio finds it by a name that the browser chooses: who hears of another's is not let in.
        """
        known = request.username or visitor_of(dict(request.cookies))
        if visit is None or (
            known and visit.tab.owner != owner_of(request.username, dict(request.cookies))
        ):
            return self._begin(request, event)
        return visit

    def _begin(self, request: gr.Request, event: gr.EventData | None) -> Visit:
        """Begin a visit: of a page that was just loaded, or one that a former server loaded."""
        owner = owner_of(request.username, dict(request.cookies))
        words = _words(request)
        id = request.query_params.get("c")
        try:
            return Visit(self._desk.tab(owner, id), words)
        except Gemma3VLError as error:
            visit = Visit(self._desk.tab(owner), words)
            visit.view = replace(EMPTY, line=public_text(error), is_error=True)
            return visit

    def _shown(self, visit: Visit, views: Iterable[View]) -> Iterator[Update]:
        """Yield what each view is drawn from; the list of conversations at the ends only."""
        was_answering, mine = None, visit.view
        for view in views:
            changed = view.answering != was_answering
            was_answering = view.answering
            with visit.lock:
                if view.id != visit.tab.id:  # another conversation is shown by now
                    mine = view
                    break
                update, mine = self._update(visit, view, with_shelf=changed), visit.view
            yield update
        if visit.view is not mine:  # something else is shown by now
            yield (gr.skip(),) * 5  # gradio sends the last values again at the end

    def _told(self, visit: Visit, error: str) -> Update:
        """Return an error as the page's line; the conversation, which may grow, is left alone."""
        with visit.lock:
            visit.view = replace(visit.view, line=error, is_error=True, details="")
            composer, said = self._composer(visit), self._line(visit)
            return visit, gr.skip(), composer, said, self._shelf(visit, "")

    def _listed(self, visit: Visit, download: str = "") -> Update:
        """Return a new list of conversations, and all else as it is."""
        return visit, gr.skip(), gr.skip(), gr.skip(), self._shelf(visit, download)

    def _update(self, visit: Visit, view: View, *, with_shelf: bool = False) -> Update:
        with visit.lock:
            if view.draft is not None:
                visit.draft_number += 1
            else:  # what the box was last given is still what it was given
                view = replace(view, draft=visit.view.draft)
            visit.view = view
            return (
                visit,
                self._conversation(visit),
                self._composer(visit),
                self._line(visit),
                self._shelf(visit, "") if with_shelf else gr.skip(),
            )

    @property
    def _takes_pictures(self) -> bool:
        return self._desk.backend().capabilities.pictures

    def _conversation(self, visit: Visit) -> dict[str, Any]:
        values = conversation_view.as_values(
            visit.view,
            texts_of(visit.words),
            examples=self._desk.examples if self._takes_pictures else (),
            show_confidence=visit.settings.confidence,
            explains=visit.tab.explains,
        )
        return {**values, "order": visit.order()}

    def _composer(self, visit: Visit) -> dict[str, Any]:
        values = composer.as_values(
            visit.view,
            visit.words,
            self._desk.backend().capabilities,
            draft_number=visit.draft_number,
            weighed=visit.weighed,
        )
        return {**values, "order": visit.order()}

    def _line(self, visit: Visit) -> dict[str, Any]:
        view = visit.view
        return {
            "text": view.line,
            "is_error": view.is_error,
            "details": view.details,
            "order": visit.order(),
        }

    def _shelf(self, visit: Visit, download: str) -> dict[str, Any]:
        tab, order = visit.tab, visit.order()
        about = self._desk.backend().capabilities
        return {
            "order": order,
            **shelf.as_values(
                *(self._desk.library, tab.owner, tab.id, visit.words),
                query=visit.query,
                download=download,
            ),
            "model": {"title": about.title or about.model, "knows": about.knows},
        }


def _words(request: gr.Request) -> Words:
    return words_for(request.headers.get("accept-language", ""))
