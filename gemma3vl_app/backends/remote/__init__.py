"""A model that somebody else's server answers with: any server that speaks OpenAI's protocol.

Reading order: `dialects` (how servers differ), `probing` (what one is and can), `rendering` and
`requests` (what it is asked), `events` and `connection` (HTTP), `writing` (an answer that comes
in), `pool` (which of several servers is asked), `backend` (all of it as a `Backend`).
"""

from gemma3vl_app.backends.remote.backend import RemoteBackend, load_remote
from gemma3vl_app.backends.remote.limits import RemoteLimits

__all__ = ["RemoteBackend", "RemoteLimits", "load_remote"]
