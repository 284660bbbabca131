"""Conversations on disk: SQLite for the text, a file for each picture; docs/store.md.

`store` is what a surface uses, `database` opens and mends the file, `rows` turns a transcript into
rows and back, `picture_files` keeps the pictures, `words` finds text, `failures` says what is wrong
with a disk.
"""

from gemma3vl_app.store.entries import Entry, Found
from gemma3vl_app.store.store import ConversationStore, default_folder

__all__ = ["ConversationStore", "Entry", "Found", "default_folder"]
