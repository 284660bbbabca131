"""What several test folders share; every fixture is made when a test first asks for it."""

import gc
import os
import sys

import pytest

# Before torch is imported anywhere. On busy cores, threads that wait for one another in every small
# operation make tiny models several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_tokenizers = {}  # by digest


@pytest.fixture(scope="session")
def base_270m():
    """The folder of the converted Gemma 3 270M base model; converts it once per machine."""
    from gemma3vl_app.loading import base_270m_folder

    return base_270m_folder()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny random Gemma 3 vision-language checkpoint in the hub's layout. Read only."""
    from gemma3vl_app.testing import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


_freeze, _unfreeze = gc.freeze, gc.unfreeze


def pytest_collection_finish():
    """Keep modules and thousands of collected tests out of all searches for unused objects.

    There is a search whenever a model is let go of (`engine.memory.give_back`), and it would take
    three seconds. Nothing is set aside after this: what a test leaves must be found.
    """
    gc.collect()
    gc.freeze()
    gc.freeze = gc.unfreeze = lambda: None


@pytest.fixture
def whole_searches(monkeypatch):
    """Let a test set aside, and search through everything, as programs do."""
    monkeypatch.setattr(gc, "freeze", _freeze)
    monkeypatch.setattr(gc, "unfreeze", _unfreeze)
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def tokenizers_stay():
    """Whatever tokenizer a test reads is there for the next one: it takes two seconds each time."""
    yield
    if tokenizer := sys.modules.get("gemma3vl_app.prompting.tokenizer"):
        _tokenizers.update(tokenizer._in_use)


@pytest.fixture(autouse=True)
def pictures_are_decoded_in_this_process_again():
    """A page that a test sets up has them decoded in other processes, for the whole program."""
    yield
    if workers := sys.modules.get("gemma3vl_app.picture_workers"):
        workers.decode_in_process()


@pytest.fixture
def shell():
    """IPython itself, which draws values and runs cells; of the extra `notebook`."""
    from IPython.core.interactiveshell import InteractiveShell

    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.fixture(scope="session")
def needs_fonts():
    """Skip where the fonts that text is printed in are not installed; the reason says which."""
    from gemma3vl_app.errors import TrainingError
    from gemma3vl_app.scenes import fonts

    try:
        fonts.faces()
        fonts.faces(held_out=True)
    except TrainingError as error:
        pytest.skip(str(error))  # Debian's packages; .ci/run installs them, a laptop need not
