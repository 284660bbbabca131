"""One small checkpoint, the same in Megatron's form, and what a training leaves of it."""

import shutil

import pytest

from gemma3vl_app.conversion.converting import convert
from tests.conversion.megatron.checkpoints import (
    ITERATION,
    read_by_torch,
    with_heads,
    write_by_torch,
)


@pytest.fixture(scope="package")
def small(tiny, tmp_path_factory):
    """The tiny checkpoint with a small vocabulary, which takes most of it. Read only."""
    return with_heads(tiny, tmp_path_factory.mktemp("small") / "small", 4, 2, 16)


@pytest.fixture(scope="package")
def written(small, tmp_path_factory):
    """The same as Megatron's. Read only."""
    return convert(small, tmp_path_factory.mktemp("megatron") / "small", "megatron", check=True)


@pytest.fixture
def trained(written, tmp_path):
    """A function that writes changed tensors as iteration 120, by torch, with the small files."""

    def write(change=lambda state: None):
        folder = tmp_path / "trained"
        folder.mkdir()
        state, _ = read_by_torch(written / ITERATION)
        change(state)
        write_by_torch(folder / "iter_0000120", state)
        for file in written.glob("*.json"):
            shutil.copy(file, folder)
        (folder / "latest_checkpointed_iteration.txt").write_text("120")
        return folder

    return write
