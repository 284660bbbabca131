"""Backends for tests of the page."""

from types import SimpleNamespace

from gemma3vl_app.backends.protocol import Backend, Explains
from gemma3vl_app.testing import ScriptedBackend


def elsewhere(backend: ScriptedBackend) -> SimpleNamespace:
    """Return `backend` as if its model were elsewhere: it answers, and explains nothing."""
    names = {name for name in dir(backend) if not name.startswith("_")}
    names |= {"__enter__", "__exit__"}
    names -= {"trace", "answer_tokens"}
    remote = SimpleNamespace(**{name: getattr(backend, name) for name in names})
    assert isinstance(remote, Backend) and not isinstance(remote, Explains)
    return remote
