"""Pictures as files that the page may load: small enough for a screen, without metadata.

They lie in a private folder of the server, one folder for each conversation, whose name nobody can
guess; they go with the conversation, and are made again when they are wanted again.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from gemma3vl_app.export.pictures import encode_shown, is_photo, safe_stem
from gemma3vl_app.pictures import Picture


class ShownPictures:
    """Write pictures where the page finds them; safe from any thread."""

    def __init__(self, folder: Path) -> None:
        """Use a folder of this server alone; it is made when the first picture comes."""
        self._folder = folder

    def path(self, conversation: str, picture: Picture) -> str:
        """Return the file of a picture of a conversation, writing it where there is none."""
        suffix = ".jpg" if is_photo(picture) else ".png"
        name = f"{picture.sha256[:16]}-{safe_stem(picture.name)}{suffix}"
        path = self._folder / conversation / name
        try:
            os.utime(path)  # it is in use: see `old_files`
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = path.with_name(f".{secrets.token_hex(8)}")  # two tabs may write it at once
            aside.write_bytes(encode_shown(picture).data)
            aside.replace(path)
        return str(path)

    def forget(self, conversation: str) -> None:
        """Delete the files of a conversation."""
        shutil.rmtree(self._folder / conversation, ignore_errors=True)
