"""A chat below a cell: ipywidgets around a `Chat` that code can read and continue.

The answer is read on a thread of its own, so that the cell is over at once and buttons work; the
`Chat` is the only memory, and tells when somebody else has said something in it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from html import escape
from typing import Any

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError, Gemma3VLError
from gemma3vl_app.generation import Sampling
from gemma3vl_app.notebook import thumbnails
from gemma3vl_app.notebook.browser_input import browser_input
from gemma3vl_app.notebook.displays import shown
from gemma3vl_app.notebook.jupyter import needed
from gemma3vl_app.notebook.live import growing
from gemma3vl_app.notebook.settings import Settings
from gemma3vl_app.notebook.shown import MUTED, NO_MATH, said
from gemma3vl_app.pictures import Picture, PictureSource
from gemma3vl_app.stream import Stream

_THUMBNAIL = 96
_HINT = (
    f'<div style="{MUTED}">Enter sends, Shift and Enter begin a new line. Pictures can be pasted '
    "into the question, or dropped here.</div>"
)


def chat(
    backend: Backend | Chat, *, system: str | None = None, images: Iterable[PictureSource] = ()
) -> ChatWidget:
    """Return a chat to talk in below the cell: with a model, or to go on with a `Chat`.

    `images` are ready to be sent with the first question. What is said is in `.chat`, which code
    may read, ask and continue; what it says there is shown, too.
    """
    if isinstance(backend, Chat):
        if system is not None:
            raise ConversationError("This chat has a system text of its own; leave `system` out.")
        return ChatWidget(backend, images)
    return ChatWidget(Chat(backend, system=system), images)


class ChatWidget:
    """The widget; `chat` is the conversation behind it."""

    def __init__(self, chat: Chat, images: Iterable[PictureSource] = ()) -> None:
        self.chat = chat
        self._widgets: Any = needed("ipywidgets")
        self._pictures: list[Picture] = [Picture.open(image) for image in images]
        self._reading: threading.Thread | None = None
        self._drawing = threading.RLock()  # whoever draws last draws what is newest
        self._growing = False  # whether an answer grows here, which is drawn as it does
        self._lay_out()
        self.refresh()
        self._show_pictures()
        chat.on_change(self.refresh)

    # --- what code may do ---

    def refresh(self) -> None:
        """Show the conversation as it is now; it does so by itself when something is said."""
        with self._drawing:
            if not self._growing:
                self._talk.value = shown(self.chat).html

    def add(self, *pictures: PictureSource) -> None:
        """Put pictures into the box, to be sent with the next question."""
        self._pictures += [Picture.open(picture) for picture in pictures]
        self._show_pictures()

    def send(self, text: str) -> None:
        """Ask, with the pictures in the box; the answer grows in the widget."""
        if not text.strip():
            self._tell("Write a question first; pictures can go with it.")
            return
        try:
            options = self._settings.options(self._own_sampling())
            pictures = list(self._pictures)
            stream = self.chat.stream(text, images=pictures, crops=self._settings.crops, **options)
        except Gemma3VLError as error:
            self._tell(str(error))
            return
        self._pictures.clear()
        self._text.value = ""
        self._show_pictures()
        self._busy(True)
        self._reading = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reading.start()

    def stop(self) -> None:
        """Stop the answer that is being written; what it has said stays."""
        self.chat.stop()

    def wait(self) -> None:
        """Wait until no answer is being written."""
        if self._reading is not None:
            self._reading.join()

    def _ipython_display_(self) -> None:
        needed("IPython.display").display(self.box)

    def __repr__(self) -> str:
        return shown(self.chat).text

    # --- parts ---

    def _lay_out(self) -> None:
        w = self._widgets
        self._talk, self._line, self._shelf = w.HTML(), w.HTML(), w.HTML()
        self._text = w.Textarea(
            placeholder="Ask about the pictures",
            rows=2,
            layout=w.Layout(width="auto"),  # 100 % would come on top of its margins
            continuous_update=False,  # Enter brings the text, which no older one may overtake
        )
        self._input = browser_input(take=self._take, ask=self._entered, tell=self._tell)
        self._send = w.Button(description="Send", button_style="primary")
        self._stop = w.Button(description="Stop", disabled=True)
        self._clear = w.Button(description="No pictures", tooltip="Take the pictures out again")
        self._settings = Settings(w, self.chat.backend.capabilities)
        self._send.on_click(lambda _: self.send(self._text.value))
        self._stop.on_click(lambda _: self.stop())
        self._clear.on_click(lambda _: self._empty())
        buttons = w.HBox([self._send, self._stop, self._input, self._clear])
        rows = [self._talk, self._line, self._shelf, self._text, buttons, w.HTML(_HINT)]
        self.box = w.VBox([*rows, self._settings.box])
        for name in ("gemma3vl-chat", *NO_MATH):
            self.box.add_class(name)

    def _own_sampling(self) -> Sampling:
        return self.chat.sampling or self.chat.backend.capabilities.sampling

    def _entered(self, text: str) -> None:
        """Ask what stands in the box when Enter is pressed, of which Python does not know yet."""
        self._text.value = text
        self.send(text)

    # --- pictures in the box ---

    def _take(self, name: str, data: bytes) -> None:
        try:
            self._pictures.append(Picture.open(data, name=name))
        except Gemma3VLError as error:
            self._tell(str(error))
        self._show_pictures()

    def _empty(self) -> None:
        self._pictures.clear()
        self._show_pictures()

    def _show_pictures(self) -> None:
        self._shelf.value = "".join(
            thumbnails.of_picture(picture, side=_THUMBNAIL) for picture in self._pictures
        )
        self._clear.disabled = not self._pictures

    # --- the answer ---

    def _read(self, stream: Stream) -> None:
        """Show an answer while it grows; runs on a thread of its own."""
        with self._drawing:
            self._growing = True
            asked = shown(self.chat).html
            self._talk.value = asked
        try:
            for text, line in growing(stream):
                self._talk.value = asked + said(text)
                self._tell(line)
            self._tell("")  # the chat shows what it cost
        except Gemma3VLError as error:
            self._tell(str(error))
        except Exception as error:
            self._tell(f"Something went wrong: {type(error).__name__}.")
            raise
        finally:
            with self._drawing:
                self._growing = False
                self.refresh()
            self._busy(False)

    def _busy(self, is_busy: bool) -> None:
        self._send.disabled, self._stop.disabled = is_busy, not is_busy

    def _tell(self, line: str) -> None:
        self._line.value = f'<div role="status" style="{MUTED}">{escape(line)}</div>'
