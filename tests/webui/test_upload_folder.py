"""What browsers send does not outlive the process, or where it is killed the next start."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

HOLDS_A_FOLDER = """
from gemma3vl_app.webui.upload_folder import new_folder
folder = new_folder()
(folder / "photo.png").write_bytes(b"secret")
print(folder, flush=True)
input()
"""


@contextmanager
def server(parent):
    """A process that has been sent a picture; yields it and its folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_FOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(parent)},
    ) as process:
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def pictures(parent):
    return sorted(parent.rglob("*.png"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_uploads_of_a_killed_process_go_with_the_next_start_and_others_stay(tmp_path):
    with server(tmp_path) as (lives, kept), server(tmp_path) as (killed, left):
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.joinpath("photo.png").exists()
        with server(tmp_path) as (later, own):
            assert pictures(tmp_path) == sorted(f / "photo.png" for f in (kept, own))
            assert not left.parent.exists()
            assert own.parent.stat().st_mode & 0o077 == 0
            for process in (lives, later):  # these end by themselves
                process.communicate("\n")
                assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_of_ours_is_left_alone(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "lock").write_bytes(b"")
    (mine / "a.png").write_bytes(b"")
    (tmp_path / "gemma3vl-uploads-link").symlink_to(mine)
    (tmp_path / "gemma3vl-uploads-new").mkdir()  # whose lock is not there yet
    with server(tmp_path):
        pass
    assert (mine / "a.png").exists() and (tmp_path / "gemma3vl-uploads-new").exists()
