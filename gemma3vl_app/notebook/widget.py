"""A chat below a cell: ipywidgets around a `Chat` that code can read and continue.

The answer is read on a thread of its own, so that the cell is over at once and buttons work; the
`Chat` is the only memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from html import escape
from typing import Any

from gemma3vl_app.backends.protocol import Backend, StreamOptions
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import ConversationError, Gemma3VLError
from gemma3vl_app.generation import Greedy, Sample, Sampling
from gemma3vl_app.notebook import thumbnails
from gemma3vl_app.notebook.displays import shown
from gemma3vl_app.notebook.jupyter import needed
from gemma3vl_app.notebook.live import growing
from gemma3vl_app.notebook.paste import paste_area
from gemma3vl_app.notebook.shown import MUTED, NO_MATH, said
from gemma3vl_app.pictures import Picture, PictureSource
from gemma3vl_app.stream import Stream

_THUMBNAIL = 96


def chat(
    backend: Backend | Chat, *, system: str | None = None, images: Iterable[PictureSource] = ()
) -> ChatWidget:
    """Return a chat to talk in below the cell: with a model, or to go on with a `Chat`.

    `images` are ready to be sent with the first question. What is said is in `.chat`, which code
    may read, ask and continue; `.refresh()` shows what it said.
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
        self._lay_out()
        self.refresh()
        self._show_pictures()

    # --- what code may do ---

    def refresh(self) -> None:
        """Show the conversation as it is now, also what code has said in it."""
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
            stream = self.chat.stream(text, images=list(self._pictures), **self._options())
        except (Gemma3VLError, ValueError) as error:
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
        wide = w.Layout(width="100%")
        self._talk, self._line, self._shelf = w.HTML(), w.HTML(), w.HTML()
        self._text = w.Textarea(placeholder="Ask about the pictures", rows=2, layout=wide)
        self._upload = w.FileUpload(accept="image/*", multiple=True, description="Pictures")
        self._paste = paste_area(self._take)
        self._send = w.Button(description="Send", button_style="primary")
        self._stop = w.Button(description="Stop", disabled=True)
        self._clear = w.Button(description="No pictures", tooltip="Take the pictures out again")
        self._sampling = self._settings()
        self._upload.observe(self._uploaded, "value")
        self._send.on_click(lambda _: self.send(self._text.value))
        self._stop.on_click(lambda _: self.stop())
        self._clear.on_click(lambda _: self._empty())
        buttons = w.HBox([self._send, self._stop, self._upload, self._clear])
        self.box = w.VBox(
            [self._talk, self._line, self._shelf, self._text, self._paste, buttons, self._sampling]
        )
        for name in ("gemma3vl-chat", *NO_MATH):
            self.box.add_class(name)

    def _settings(self) -> Any:
        w = self._widgets
        self._temperature = w.Text(placeholder="the model's own; 0 is greedy")
        self._seed = w.Text(placeholder="a new one each time")
        self._most = w.IntText(value=self.chat.backend.capabilities.answer_tokens)
        rows = [
            w.HBox([w.Label(name), field])
            for name, field in (
                ("Temperature", self._temperature),
                ("Seed", self._seed),
                ("Most tokens", self._most),
            )
        ]
        folded = w.Accordion([w.VBox(rows)], selected_index=None)
        folded.set_title(0, "Sampling")
        return folded

    def _options(self) -> StreamOptions:
        return {"sampling": self._rule(), "max_new_tokens": self._most.value}

    def _rule(self) -> Sampling | None:
        temperature, seed = self._temperature.value.strip(), self._seed.value.strip()
        if not temperature and not seed:
            return None  # the chat's, or the model's own
        own = self.chat.sampling or self.chat.backend.capabilities.sampling
        if temperature and float(temperature) == 0:
            return Greedy()
        like = own if isinstance(own, Sample) else Sample()
        return Sample(
            temperature=float(temperature) if temperature else like.temperature,
            top_k=like.top_k,
            top_p=like.top_p,
            seed=int(seed) if seed else None,
        )

    # --- pictures in the box ---

    def _uploaded(self, change: Any) -> None:
        files = list(change["new"])
        for file in files:
            self._take(file["name"], bytes(file["content"]))
        if files:
            self._upload.value = ()

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
        asked = shown(self.chat.conversation).html
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
            self.refresh()
            self._busy(False)

    def _busy(self, is_busy: bool) -> None:
        self._send.disabled, self._stop.disabled = is_busy, not is_busy

    def _tell(self, line: str) -> None:
        self._line.value = f'<div role="status" style="{MUTED}">{escape(line)}</div>'
