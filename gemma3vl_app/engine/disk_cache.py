"""What is computed, kept on the disk: prefixes and encoded pictures outlast evictions and restarts.

An entry is a file that is named by digests of all that must be equal for it to be used: weights,
arithmetic, settings, adapter and session salt, then token ids and pictures. Whatever the disk does,
the engine goes on: entries are written by a thread of their own, and one that cannot be read counts
as not there. Shapes: H_kv key/value heads, n tokens, T soft tokens of a picture, D model width.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gemma3vl_app.engine.background import Background
from gemma3vl_app.engine.cache_folder import CacheFolder
from gemma3vl_app.engine.entry_files import DamagedFile, StoredEntry, open_entry, storable
from gemma3vl_app.engine.kv import SequenceKV, first_visible
from gemma3vl_app.engine.model import Layout
from gemma3vl_app.engine.prefix import Scope, Snapshot, outside_pictures
from gemma3vl_app.prompting.prompt import PreparedPrompt, PromptKey, common_prefix

FORMAT = "1"  # of the files; another one is not read
_MIN_TOKENS = 64  # fewer are computed about as quickly as they are read
_MAX_INDEXED = 128  # bounds the time of one look-up, as in `PrefixCache`
_PENDING_BYTES = 512 << 20  # of what waits to be written, most of which the memory caches hold too
_FLUSH_SEC = 10.0


@dataclass(frozen=True, kw_only=True)
class DiskSettings:
    """Where the cache lies, and for which model.

    `identity` says everything that decides what is computed from ids and pixels, adapters aside;
    `image_tokens` is T.
    """

    folder: Path
    budget_bytes: int
    identity: str
    image_tokens: int


@dataclass(frozen=True, eq=False)
class StoredPrefix:
    """A prefix on the disk: all of `key` has been computed.

    `firsts` holds for each layer the first position whose keys and values are there.
    """

    name: str
    scope: str
    key: PromptKey
    firsts: tuple[int, ...]

    def can_rewind(self, length: int, windows: tuple[int | None, ...]) -> bool:
        """Tell whether the first `length` tokens can be gone on from, as far as windows reach."""
        return all(
            first <= first_visible(length, window)
            for first, window in zip(self.firsts, windows, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Found:
    """A prefix to load, and how many tokens of a prompt it covers."""

    stored: StoredPrefix
    length: int


class DiskCache:
    """Prefixes and encoded pictures of one model in a folder; every method is thread-safe."""

    def __init__(
        self, settings: DiskSettings, layout: Layout, adapter_digest: Callable[[str], bytes]
    ) -> None:
        """Read what the folder holds of this model, and start the thread that writes.

        `adapter_digest` tells adapters apart by their weights; raises `KeyError` for unknown keys.
        """
        self._identity = settings.identity
        self._image_tokens = settings.image_tokens
        self._layout = layout
        self._adapter_digest = adapter_digest
        self._model = _digest(settings.identity.encode())[:16]
        self._lock = threading.Lock()  # guards the index
        self._index: dict[str, StoredPrefix] = {}  # by name, oldest first
        self._folder = CacheFolder(settings.folder, settings.budget_bytes, on_gone=self._forget)
        self._writer = Background("gemma3vl-disk-cache", pending_bytes=_PENDING_BYTES)
        self._private = self._folder.is_private()  # else nothing that lies there is believed
        if self._private:
            self._writer.offer(self._folder.tidy, 1)
            self._read_index()

    # --- prefixes ---

    def find(
        self, scope: Scope, prompt: PreparedPrompt, *, uncomputed: int = 1, known: int = 0
    ) -> Found | None:
        """Return the prefix that covers most tokens of `prompt`, if clearly more than `known`.

        At least the last `uncomputed` tokens are left out.
        """
        if not (in_scope := self._scope(scope)):
            return None
        with self._lock:
            stored = [each for each in self._index.values() if each.scope == in_scope]
        best, longest = None, known + _MIN_TOKENS - 1
        for each in stored:
            shared = common_prefix(each.key, prompt.key)
            length = outside_pictures(prompt, min(shared, len(prompt.ids) - uncomputed))
            if length > longest and each.can_rewind(length, self._layout.windows):
                best, longest = each, length
        return None if best is None else Found(best, longest)

    def load(
        self, found: Found, *, expected_tokens: int, unit_sec: float
    ) -> Generator[None, None, SequenceKV | None]:
        """Read a prefix layer by layer, yielding between units of work; None if it is not there."""
        name = found.stored.name
        try:
            with open_entry(self._folder.path(name)) as entry:
                kv = yield from self._restored(entry, found, expected_tokens, unit_sec)
        except DamagedFile as damage:
            self._folder.discard(name, damage)
            return None
        except OSError as error:
            self._gone(name, error)
            return None
        self._folder.use(name)
        return kv

    def keep_prefix(self, snapshot: Snapshot) -> None:
        """Have a snapshot written, unless it is short or the disk is behind.

        Nothing is copied here: what a snapshot covers is never overwritten.
        """
        kv, in_scope = snapshot.kv, self._scope(snapshot.scope)
        parts = kv.parts()
        if kv.length < _MIN_TOKENS or not in_scope or not storable(parts[0][1]):
            return
        ids, places = snapshot.key.ids[: kv.length], snapshot.key.places
        key = PromptKey(ids, tuple(place for place in places if place[1] <= kv.length))
        firsts = tuple(first for first, _, _ in parts)
        stored = StoredPrefix(self._prefix_name(in_scope, key), in_scope, key, firsts)
        tensors = {"ids": torch.from_numpy(ids.astype(np.int32))}
        for layer, (_, keys, values) in enumerate(parts):
            tensors |= {f"{layer}.keys": keys, f"{layer}.values": values}
        self._writer.offer(partial(self._write_prefix, stored, tensors), snapshot.allocated_bytes)

    def _write_prefix(self, stored: StoredPrefix, tensors: Mapping[str, torch.Tensor]) -> None:
        about = {
            "places": _as_json(stored.key.places),
            "firsts": json.dumps(stored.firsts),
        }
        if self._write(stored.name, about, tensors):
            self._add(stored)

    def _restored(
        self, entry: StoredEntry, found: Found, expected_tokens: int, unit_sec: float
    ) -> Generator[None, None, SequenceKV]:
        """Copy an entry's keys and values to where their layers are; raises `DamagedFile`."""
        stored, layout, began = found.stored, self._layout, time.perf_counter()
        self._check_about(entry, stored.name)
        if entry.read("ids").tolist() != stored.key.ids.tolist():
            raise DamagedFile("its tokens are other ones")
        kv = SequenceKV(layout.windows, expected_tokens=expected_tokens)
        kv.length = found.length
        for layer, (first, device) in enumerate(zip(stored.firsts, layout.devices, strict=True)):
            shape = (layout.heads, len(stored.key.ids) - first, layout.head_dim)
            keys, values = (
                self._expected(entry.read(f"{layer}.{part}"), shape) for part in ("keys", "values")
            )
            kv.restore(layer, first, keys, values, device)
            if time.perf_counter() - began > unit_sec / 2:
                yield
                began = time.perf_counter()
        entry.check()
        return kv

    def _expected(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        if tuple(tensor.shape) != shape or tensor.dtype != self._layout.dtype:
            raise DamagedFile("its tensors have another shape")
        return tensor

    # --- encoded pictures ---

    def picture(self, scope: Scope, image_key: bytes) -> torch.Tensor | None:
        """Return the features (T, D) of a picture, or None."""
        if not (name := self._picture_name(scope, image_key)):
            return None
        try:
            with open_entry(self._folder.path(name)) as entry:
                self._check_about(entry, name)
                shape = (self._image_tokens, self._layout.width)
                mapped = self._expected(entry.read("features"), shape)
                entry.check()
                features = mapped.to(self._layout.devices[0], copy=True)
        except DamagedFile as damage:
            self._folder.discard(name, damage)
            return None
        except OSError as error:
            self._gone(name, error)
            return None
        self._folder.use(name)
        return features

    def keep_picture(self, scope: Scope, image_key: bytes, features: torch.Tensor) -> None:
        """Have the features (T, D) of a picture written, unless the disk is behind."""
        name = self._picture_name(scope, image_key)
        if name and storable(features):
            job = partial(self._write, name, {}, {"features": features})
            self._writer.offer(job, features.nbytes)

    # --- both ---

    def flush(self, timeout_sec: float) -> bool:
        """Wait until all that was kept so far is on the disk; False where that takes longer."""
        return self._writer.wait(timeout_sec)

    def drop_waiting(self) -> None:
        """Let go of what waits to be written, which keeps memory that is short."""
        self._writer.drop()

    def close(self) -> None:
        """Write what still waits, as far as a few seconds allow, and end the thread."""
        self._writer.close(_FLUSH_SEC)

    @torch.inference_mode()  # as the tensors were made
    def _write(
        self, name: str, about: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
    ) -> bool:
        """Write an entry, unless it is there; True where it is there now."""
        if self._folder.use(name):
            return True
        # A sum is not a number if any part is not, and takes a fraction of the time of looking.
        if not all(torch.isfinite(each.sum(dtype=torch.float32)) for each in tensors.values()):
            return False
        return self._folder.write(name, {**about, "format": FORMAT, "entry": name}, tensors)

    def _check_about(self, entry: StoredEntry, name: str) -> None:
        if entry.about.get("format") != FORMAT or entry.about.get("entry") != name:
            raise DamagedFile("it is another entry's")

    def _gone(self, name: str, error: OSError) -> None:
        """Count an entry as not there; only what is no plain absence is worth a word."""
        self._forget(name)
        if not isinstance(error, FileNotFoundError):
            self._folder.complain("be read", error)

    # --- names ---

    def _scope(self, scope: Scope) -> str:
        """Return the digest of all that must be equal but ids and pictures; "" for none at all."""
        if not self._private:
            return ""
        adapter, *salts = scope or (None,)
        try:
            known = self._adapter_digest(adapter) if isinstance(adapter, str) else b""
        except KeyError:  # it was removed
            return ""
        return _digest(self._identity.encode(), known, repr(salts).encode())

    def _prefix_name(self, in_scope: str, key: PromptKey) -> str:
        ids = key.ids.astype(np.int32).tobytes()
        digest = _digest(in_scope.encode(), ids, _as_json(key.places).encode())
        return f"{self._model}-{in_scope}-{digest}.prefix.safetensors"

    def _picture_name(self, scope: Scope, image_key: bytes) -> str:
        if not (in_scope := self._scope(scope)):
            return ""
        digest = _digest(in_scope.encode(), image_key)
        return f"{self._model}-{in_scope}-{digest}.picture.safetensors"

    # --- the index ---

    def _read_index(self) -> None:
        """Learn which prefixes of this model are there, those of last use first."""
        ours = [
            name
            for name in self._folder.names()
            if name.startswith(f"{self._model}-") and ".prefix." in name
        ]
        for name in reversed(ours[:_MAX_INDEXED]):
            try:
                with open_entry(self._folder.path(name)) as entry:
                    self._add(self._described(entry, name))
            except DamagedFile as damage:
                self._folder.discard(name, damage)
            except OSError as error:
                self._gone(name, error)

    def _described(self, entry: StoredEntry, name: str) -> StoredPrefix:
        """Return what an entry says it is; raises `DamagedFile` where it cannot be that."""
        self._check_about(entry, name)
        try:
            places = tuple(
                (int(start), int(stop), bytes.fromhex(key))
                for start, stop, key in json.loads(entry.about["places"])
            )
            firsts = tuple(int(first) for first in json.loads(entry.about["firsts"]))
            in_scope = name.split("-")[1]
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise DamagedFile("it does not say what it is") from error
        key = PromptKey(entry.read("ids").numpy().astype(np.int64), places)
        fits = len(firsts) == len(self._layout.windows) and all(
            0 <= first <= len(key.ids) for first in firsts
        )
        if not fits or key.ids.ndim != 1 or self._prefix_name(in_scope, key) != name:
            raise DamagedFile("its name is another one")
        return StoredPrefix(name, in_scope, key, firsts)

    def _add(self, stored: StoredPrefix) -> None:
        with self._lock:
            self._index.pop(stored.name, None)
            self._index[stored.name] = stored
            while len(self._index) > _MAX_INDEXED:
                del self._index[next(iter(self._index))]

    def _forget(self, name: str) -> None:
        with self._lock:
            self._index.pop(name, None)


def _as_json(places: tuple[tuple[int, int, bytes], ...]) -> str:
    return json.dumps([[int(start), int(stop), key.hex()] for start, stop, key in places])


def _digest(*parts: bytes) -> str:
    """Return 32 hexadecimal digits that say which parts these are; each counts with its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]
