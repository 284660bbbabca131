"""One model for all tests of this folder that ask a real one."""

import pytest

from gemma3vl_app.backends.local import load


@pytest.fixture(scope="session")
def local(tiny):
    """The tiny checkpoint, loaded; it keeps pictures and prompts of earlier tests."""
    with load(tiny, weights="fp32") as backend:
        yield backend
