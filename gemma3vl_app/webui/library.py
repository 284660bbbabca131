"""Everybody's conversations: those that are open on this server, and those in the store.

A conversation is open while somebody talks or looks; opened twice, it is the same one. Each owner
sees their own only, and has a salt of their own: nothing is reused across people.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.chat import Chat
from gemma3vl_app.errors import UnknownConversationError
from gemma3vl_app.store import ConversationStore, Entry, Found
from gemma3vl_app.transcript import Transcript
from gemma3vl_app.webui.live_chat import GRACE_SEC, LiveChat

OPEN_AT_MOST = 200  # conversations that rest in memory; those that answer come on top


@dataclass(frozen=True)
class Opened:
    """A conversation that is open, and its name in the library."""

    id: str
    live: LiveChat


class Library:
    """Open, list and delete conversations; safe from any thread.

    Without a `store`, conversations last as long as the process, and no longer than
    `open_at_most` newer ones.
    """

    def __init__(
        self,
        backend: Callable[[], Backend],
        store: ConversationStore | None = None,
        *,
        grace_sec: float = GRACE_SEC,
        open_at_most: int = OPEN_AT_MOST,
    ) -> None:
        """Let conversations be answered by what `backend` returns at that moment."""
        self._backend = backend
        self._store = store
        self._grace_sec = grace_sec
        self._open_at_most = open_at_most
        self._salt = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str], LiveChat] = OrderedDict()
        self._shared: dict[str, LiveChat] = {}  # by id; for whoever knows it
        # Also those that rest no longer in memory by us, but that some page still shows: opened
        # again it has to be the same one, or two would overwrite each other in the store.
        self._shown: WeakValueDictionary[tuple[str, str], LiveChat] = WeakValueDictionary()

    @property
    def is_kept(self) -> bool:
        """Whether conversations outlast this server."""
        return self._store is not None

    @property
    def notice(self) -> str | None:
        """What people should know about how the store was opened."""
        return self._store.notice if self._store else None

    def new(self, owner: str, transcript: Transcript | None = None) -> Opened:
        """Begin a conversation, stored with its first message; or take one over at once."""
        id = secrets.token_hex(16)
        if transcript is not None and self._store is not None:
            self._store.create(owner, transcript, id=id)
        is_stored = transcript is not None
        live = self._live(owner, id, transcript or Transcript(), is_stored=is_stored)
        return Opened(id, self._keep_open(owner, id, live))

    def share(self, id: str, chat: Chat) -> None:
        """Let everybody who knows `id`, which nobody can guess, go on with a program's chat.

        Shared again, its system text of then holds where the page says nothing else.
        """
        live = LiveChat(chat, grace_sec=self._grace_sec, system=chat.system)
        with self._lock:
            self._shared.setdefault(id, live).system = chat.system

    def unshare(self, id: str) -> None:
        """Let nobody go on with it here any more; pages that show it are told when they try."""
        with self._lock:
            live = self._shared.pop(id, None)
        if live is not None:
            live.close()

    def open(self, owner: str, id: str) -> Opened:
        """Return a conversation of `owner`, as it is now.

        Raises `UnknownConversationError` where they have none of that id, `StoreError` where it
        cannot be read.
        """
        with self._lock:
            if id in self._shared:
                return Opened(id, self._shared[id])
            live = self._open.get((owner, id)) or self._shown.get((owner, id))
        if live is None:
            if self._store is None:
                raise UnknownConversationError(
                    "This conversation is no longer there: the server was started again or has "
                    "forgotten it. Begin a new one."
                )
            transcript = self._store.load(owner, id)
            live = self._live(owner, id, transcript, is_stored=True)
        return Opened(id, self._keep_open(owner, id, live))

    # --- lists ---

    def entries(self, owner: str, *, offset: int = 0) -> tuple[Entry, ...]:
        """Return a page of an owner's stored conversations, pinned and newest first."""
        return self._store.list(owner, offset=offset) if self._store else ()

    def search(self, owner: str, query: str) -> tuple[Found, ...]:
        """Return the stored conversations that have every word of `query`."""
        return self._store.search(owner, query) if self._store else ()

    def rename(self, owner: str, id: str, title: str) -> None:
        """Give a stored conversation a title; "" goes back to its first words."""
        self._stored(owner, id).rename(owner, id, title)

    def pin(self, owner: str, id: str, pinned: bool) -> None:
        """Keep a stored conversation at the top of the list, or no longer."""
        self._stored(owner, id).pin(owner, id, pinned)

    def delete(self, owner: str, id: str) -> None:
        """Delete a conversation with its pictures, and end its answer."""
        with self._lock:
            shown = self._shown.pop((owner, id), None)
            live = self._open.pop((owner, id), shown)
        if live is not None:
            live.close()
        if self._store is not None:
            try:
                self._store.delete(owner, id)
            except UnknownConversationError:
                if live is None:
                    raise  # it was never stored

    def close(self) -> None:
        """End all answers; what they have said so far is saved."""
        with self._lock:
            chats = [*self._open.values(), *self._shared.values()]
            self._open.clear()
        for live in chats:
            live.stop()

    # --- inside ---

    def _stored(self, owner: str, id: str) -> ConversationStore:
        if self._store is None:
            raise UnknownConversationError("Conversations are not kept on this server.")
        return self._store

    def _live(self, owner: str, id: str, transcript: Transcript, *, is_stored: bool) -> LiveChat:
        salt = hashlib.sha256(f"{self._salt} {owner}".encode()).hexdigest()
        chat = Chat.from_transcript(transcript, self._backend(), session=salt)
        store = _Saving(self._store, owner, id, is_stored) if self._store else None

        def save(transcript: Transcript) -> None:
            self._keep_open(owner, id, live)
            if store is not None:
                store(transcript)

        live = LiveChat(chat, save=save, backend=self._backend, grace_sec=self._grace_sec)
        return live

    def _keep_open(self, owner: str, id: str, live: LiveChat) -> LiveChat:
        """Note that a conversation is open; two tabs that open it at once get the same one."""
        with self._lock:
            live = self._shown.setdefault((owner, id), live)
            if not live.moment.messages:
                return live  # nothing would be lost with it: it is there while a page shows it
            self._open[owner, id] = live
            self._open.move_to_end((owner, id))
            resting = [key for key, each in self._open.items() if not each.is_busy]
            for key in resting[: max(0, len(resting) - self._open_at_most)]:
                del self._open[key]
        return live


class _Saving:
    """Save a conversation under its id: the first time as a new one."""

    def __init__(self, store: ConversationStore, owner: str, id: str, is_stored: bool) -> None:
        self._store, self._owner, self._id = store, owner, id
        self._is_stored = is_stored

    def __call__(self, transcript: Transcript) -> None:
        if self._is_stored:
            self._store.save(self._owner, self._id, transcript)
        elif transcript.turns:  # nothing is stored of what was only looked at
            self._store.create(self._owner, transcript, id=self._id)
            self._is_stored = True
