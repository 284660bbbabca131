"""A chat in one file: a zip of `conversation.json` and the pictures; docs/conversation-file.md.

`document` is the versioned JSON, `archive` the zip and its limits, `files` puts both together.
"""

from gemma3vl_app.conversation_file.files import (
    SUFFIX,
    SavedChat,
    open_saved,
    read_chat,
    software_here,
    write_chat,
)

__all__ = ["SUFFIX", "SavedChat", "open_saved", "read_chat", "software_here", "write_chat"]
