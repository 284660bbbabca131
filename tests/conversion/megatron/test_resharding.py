"""Megatron-Core loads what we wrote on two processes, and what they save is the same model."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemma3vl_app.conversion.converting import convert
from tests.conversion.megatron.checkpoints import ITERATION, assert_same_weights
from tests.conversion.megatron.write_by_core import (
    GROUPS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
)

ROOT = Path(__file__).parents[3]
BY_CORE = Path(__file__).parent / "by_core"


@pytest.mark.slow
def test_two_processes_of_megatron_share_the_weights_out_and_none_changes(tmp_path):
    pytest.importorskip("megatron.core", reason="of the extra dev, on Linux")
    hub = convert(BY_CORE, tmp_path / "hub")
    ours = convert(hub, tmp_path / "ours", "megatron")
    shared_out = tmp_path / "shared out"
    iteration = shared_out / "iter_0000008"

    program = [sys.executable, "-m", "tests.conversion.megatron.reshard_by_core"]
    done = subprocess.run(
        [*program, str(ours / ITERATION), str(iteration)],
        **{"capture_output": True, "text": True, "cwd": ROOT, "timeout": 300, "check": False},
    )
    assert done.returncode == 0, done.stderr
    half = ((HEADS + 2 * GROUPS) * HEAD_DIM // 2, HIDDEN)
    for rank in range(2):
        assert f"process {rank} holds queries, keys and values of {half}" in done.stdout
        assert list(iteration.glob(f"__{rank}_*.distcp"))

    for file in hub.glob("*.json"):
        shutil.copy(file, shared_out)
    (shared_out / "latest_checkpointed_iteration.txt").write_text("8")
    assert_same_weights(convert(shared_out, tmp_path / "back"), hub)
