"""What all tabs of the page share: the model, the conversations, and the folder of their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.picture_workers import decode_in_workers
from gemma3vl_app.store import ConversationStore
from gemma3vl_app.webui import examples
from gemma3vl_app.webui.library import Library
from gemma3vl_app.webui.models import Models
from gemma3vl_app.webui.old_files import OldFiles
from gemma3vl_app.webui.shown_pictures import ShownPictures
from gemma3vl_app.webui.tab import Tab
from gemma3vl_app.webui.view import Draft


@dataclass(frozen=True)
class Desk:
    """`backend` returns what answers next; `uploads` is where the server puts what is sent.

    `models` is None where the model cannot be changed.
    """

    backend: Callable[[], Backend]
    library: Library
    pictures: ShownPictures
    uploads: Path
    examples: tuple[Draft, ...]
    models: Models | None = None
    old_files: OldFiles = field(default_factory=lambda: OldFiles(()))

    @property
    def exports(self) -> Path:
        """Where conversations are written that somebody downloads."""
        return self.uploads / "exports"

    @staticmethod
    def set_up(
        backend: Callable[[], Backend],
        uploads: Path,
        store: ConversationStore | None = None,
        models: Models | None = None,
    ) -> Desk:
        """Make a desk with its files in `uploads`, a private folder that the page may load from.

        What browsers send is decoded in processes of its own from then on.
        """
        decode_in_workers()
        folder = uploads / "examples"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        drafts = tuple(
            Draft(example.question, files)
            for example, files in zip(examples.EXAMPLES, examples.save(folder), strict=True)
        )
        folder = uploads / "shown"
        desk = Desk(
            *(backend, Library(backend, store), ShownPictures(folder), uploads, drafts, models)
        )
        return replace(desk, old_files=OldFiles((folder, desk.exports)))

    def tab(self, owner: str, id: str | None = None) -> Tab:
        """Open a tab; raises what `Library.open` raises for an `id` that `owner` has not."""
        self.old_files.sweep()
        return Tab(self.library, self.pictures, self.backend, owner, id)

    def uploaded(self, files: object) -> tuple[str, ...]:
        """Return the paths that a browser names, if all are files that were sent to this server.

        A browser may say anything: no other file is ever opened for it. Raises
        `ConversationError`.
        """
        named = files if isinstance(files, list) else []
        folder = self.uploads.resolve()
        for file in named:
            if not isinstance(file, str) or folder not in Path(file).resolve().parents:
                raise ConversationError(
                    "A picture has to be sent to this server first; add it anew."
                )
            if not Path(file).is_file():
                name = Path(file).name
                raise ConversationError(f"{name} is no longer on the server; add it anew.")
        return tuple(named)
