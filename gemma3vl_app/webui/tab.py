"""One browser tab: which conversation it shows, and what a person does there.

Turns what a person sent into calls of a `LiveChat`, and its moments into `View`s. Knows nothing of
gradio or HTML.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from gemma3vl_app.backends.protocol import Backend, Explains, StreamOptions
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError, Gemma3VLError, public_text
from gemma3vl_app.messages import Conversation, Message, Text
from gemma3vl_app.pictures import Picture
from gemma3vl_app.stream import Stream
from gemma3vl_app.transcript import Transcript
from gemma3vl_app.webui.drafts import DraftPictures, Weighed, items_of
from gemma3vl_app.webui.explanation import Explanation, Found, Method
from gemma3vl_app.webui.library import Library, Opened
from gemma3vl_app.webui.live_chat import OUR_FAULT, Moment
from gemma3vl_app.webui.shown_pictures import ShownPictures
from gemma3vl_app.webui.view import DEFAULTS, Draft, Settings, Shown, View
from gemma3vl_app.webui.written_answer import Clicked, written_answer
from gemma3vl_app.wording import breakdown

ALTERNATIVES = 4  # that are told for each token, where its confidence is shown
_log = logging.getLogger(__name__)


class Tab:
    """Show one conversation of `owner` at a time; every action yields views until it is over."""

    def __init__(
        self,
        library: Library,
        pictures: ShownPictures,
        backend: Callable[[], Backend],
        owner: str,
        id: str | None = None,
    ) -> None:
        """Begin with conversation `id`, or with a new one; raises what `Library.open` raises."""
        self._library = library
        self._pictures = pictures
        self._backend = backend
        self._drafted = DraftPictures(pictures)
        self._explaining = threading.Lock()
        self._explanation: Explanation | None = None
        self.owner = owner
        self._opened = library.open(owner, id) if id else library.new(owner)

    @property
    def id(self) -> str:
        """Which conversation is shown."""
        return self._opened.id

    # --- which conversation ---

    def new(self) -> View:
        """Show a new, empty conversation; the one before goes on by itself."""
        self._opened = self._library.new(self.owner)
        return self._view(draft=Draft())

    def take_over(self, opened: Opened) -> View:
        """Show a conversation that was brought in."""
        self._opened = opened
        return self._view(draft=Draft())

    def open(self, id: str) -> Iterator[View]:
        """Show another conversation, and its answer while it grows."""
        try:
            self._opened = self._library.open(self.owner, id)
        except Gemma3VLError as error:
            yield self._told(error)
            return
        yield from self.watch()

    def delete(self, id: str) -> View:
        """Delete a conversation; where it is shown, a new one takes its place."""
        try:
            self._library.delete(self.owner, id)
        except Gemma3VLError as error:
            return self._told(error)
        self._pictures.forget(id)
        return self.new() if id == self.id else self._view()

    @property
    def transcript(self) -> Transcript:
        """All branches of what is shown, a running answer left out."""
        return self._opened.live.transcript

    @property
    def view(self) -> View:
        """The conversation as it is now."""
        return self._view()

    def watch(self) -> Iterator[View]:
        """Show the conversation as it is, until no answer is being written."""
        yield from self._watch(self._opened)

    # --- what is said ---

    def weigh(self, draft: Draft, settings: Settings = DEFAULTS) -> Weighed:
        """Say what `draft` would cost; files that are no pictures are left out and told."""
        opened, error = self._drafted.open_what_can_be(draft.files, self.id)
        pictures = [Picture.open(picture, crops=settings.crops) for _, picture in opened]
        parts = (*pictures, *([Text(draft.text)] if draft.text else ()))
        backend, said = self._backend(), self._opened.live.moment.messages
        about = backend.capabilities
        messages = (*said, Message("user", parts)) if parts else said
        if not messages:
            return Weighed((), 0, about.context_tokens, error)
        try:
            if pictures and not about.pictures:
                raise ConversationError(f"{about.title or about.model} takes no pictures.")
            preview = backend.preview(
                Conversation(messages, settings.system or self._opened.live.system)
            )
        except Gemma3VLError as refused:
            return Weighed(None, 0, about.context_tokens, public_text(refused))
        items = items_of(opened, preview, about.image_tokens)
        return Weighed(items, preview.prompt_tokens, preview.context_tokens, error)

    def ask(self, draft: Draft, settings: Settings = DEFAULTS) -> Iterator[View]:
        """Send `draft` and show the answer; where nothing comes of it, the draft comes back."""

        def begin(chat: Chat) -> Stream:
            chat.system = settings.system or self._opened.live.system
            return chat.stream(
                draft.text.strip(), images=pictures, crops=settings.crops, **self._options(settings)
            )

        try:
            if not draft.text.strip():
                raise ConversationError("Write a question first; pictures can go with it.")
            opened = self._drafted.open(draft.files, self.id)
            pictures = [picture for _, picture in opened]
        except Gemma3VLError as error:
            yield replace(self._told(error), draft=draft)
            return
        yield from self._answer(begin, draft)

    def regenerate(self, settings: Settings = DEFAULTS) -> Iterator[View]:
        """Answer the last question anew; the answer so far stays as another version."""
        yield from self._answer(lambda chat: chat.regenerate(**self._options(settings)))

    def resume(self, settings: Settings = DEFAULTS) -> Iterator[View]:
        """Go on with an answer that was cut."""
        yield from self._answer(lambda chat: chat.resume(**self._options(settings)), continues=True)

    def edit(self, index: int, text: str, settings: Settings = DEFAULTS) -> Iterator[View]:
        """Say message `index` differently and show its answer; the old one stays as a version."""
        messages = self._opened.live.moment.messages
        pictures = messages[index].pictures if 0 <= index < len(messages) else ()
        draft = Draft(text, self._drafted.put_back(pictures, self.id))  # comes back if refused
        yield from self._answer(
            lambda chat: chat.edit(index, text, **self._options(settings)), draft
        )

    def switch(self, index: int, version: int) -> View:
        """Show another version of message `index`, and what followed it."""
        return self._change(lambda chat: chat.switch(index, version))

    def undo(self) -> View:
        """Step back before the last question; it comes back into the box, to be changed."""
        messages = self._opened.live.moment.messages
        asked = next((m for m in reversed(messages) if m.role == "user"), None)
        view = self._change(Chat.undo)
        if asked is None or view.is_error:
            return view
        files = self._drafted.put_back(asked.pictures, self.id)
        return replace(view, draft=Draft(asked.text, files))

    def stop(self) -> None:
        """End the answer that is being written; what it has said stays."""
        self._opened.live.stop()

    # --- why it was said ---

    @property
    def explains(self) -> bool:
        """Whether what answers next can say why a word is there."""
        return isinstance(self._opened.live.backend, Explains)

    def explain(self, clicked: Clicked, method: Method, number: int = 0) -> Iterator[Found]:
        """Show what is found of why a word is there; what was looked for before is left.

        `number` is what the page calls it.
        """
        opened, live = self._opened, self._opened.live
        with self._explaining:
            explanation = Explanation(
                lambda: written_answer(live.transcript, clicked, live.backend, live.session),
                method,
                number,
                after=self._explanation,
            )
            self._explanation = explanation
        for found in explanation.watch():
            if self._opened is not opened or self._explanation is not explanation:
                return
            yield found

    def leave(self, number: int = 0) -> None:
        """Look no longer for what the page calls `number`; the next may have begun already."""
        with self._explaining:
            if self._explanation is not None and self._explanation.number == number:
                self._explanation.stop()

    # --- inside ---

    def _options(self, settings: Settings) -> StreamOptions:
        backend = self._backend()
        about = backend.capabilities
        if settings.adapter and settings.adapter not in backend.adapters:
            raise ConversationError(
                f"{about.title or about.model} has no adapter {settings.adapter!r}: choose another "
                "one in the settings, or none."
            )
        return {
            "sampling": settings.sampling(about.sampling),
            "max_new_tokens": settings.max_new_tokens or about.answer_tokens,
            "adapter": settings.adapter,
            "schema": settings.json_schema(),
            "logprobs": ALTERNATIVES if settings.confidence and about.logprobs else None,
        }

    def _answer(
        self,
        begin: Callable[[Chat], Stream],
        draft: Draft | None = None,
        *,
        continues: bool = False,
    ) -> Iterator[View]:
        opened = self._opened
        try:
            writing = opened.live.begin(begin, continues=continues)
        except Gemma3VLError as error:
            yield replace(self._told(error), draft=draft)
            return
        except Exception:
            _log.exception("asking failed")
            yield replace(self._view(), line=OUR_FAULT, is_error=True, draft=draft)
            return
        if draft is not None:  # it is sent: the box is free
            yield replace(self._view(), draft=Draft())
        yield from self._watch(opened)
        if draft is not None and writing.taken_back and self._opened is opened:
            yield replace(self._view(), draft=draft)

    def _watch(self, opened: Opened) -> Iterator[View]:
        shown = None
        for moment in opened.live.watch():
            if self._opened is not opened:  # another one is shown meanwhile
                return
            if moment != shown:
                yield self._view_of(moment, opened)
            shown = moment

    def _change(self, act: Callable[[Chat], None]) -> View:
        try:
            self._opened.live.change(act)
        except Gemma3VLError as error:
            return self._told(error)
        return self._view()

    def _told(self, error: Gemma3VLError) -> View:
        return replace(self._view(), line=public_text(error), is_error=True)

    def _view(self, *, draft: Draft | None = None) -> View:
        opened = self._opened
        return replace(self._view_of(opened.live.moment, opened), draft=draft)

    def _view_of(self, moment: Moment, opened: Opened) -> View:
        messages = [
            Shown(
                message.role,
                message.text,
                tuple(self._pictures.path(opened.id, picture) for picture in message.pictures),
                *version,
            )
            for message, version in zip(moment.messages, moment.versions, strict=True)
        ]
        if moment.answer is not None and messages and messages[-1].role == "assistant":
            tokens = moment.answer.tokens
            said = "".join(token.text for token in tokens)
            if tokens and said == messages[-1].text and tokens[0].logprob is not None:
                messages[-1] = replace(messages[-1], tokens=tokens)
        if moment.continues and messages:
            messages[-1] = replace(messages[-1], text=messages[-1].text + moment.said)
        elif moment.said:
            messages.append(Shown("assistant", moment.said))
        cut = moment.answer is not None and moment.answer.finish_reason != "stop"
        return View(
            tuple(messages),
            opened.id,
            moment.line,
            self._details(moment),
            moment.is_error,
            moment.answering,
            can_continue=cut and not moment.answering,
        )

    def _details(self, moment: Moment) -> str:
        about = moment.answered_by
        if moment.answer is None or moment.is_error or about is None:
            return ""
        model = ", ".join(filter(None, (about.model, about.weights, about.arithmetic)))
        return " · ".join(filter(None, (breakdown(moment.answer), model)))
