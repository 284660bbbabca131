"""A process on a terminal of its own: what a person sees and presses, without a screen."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

COLUMNS, ROWS = 100, 40
NOT_TAKEN_OVER = ("CI", "NO_COLOR", "COLUMNS", "LINES")  # they would say what the terminal is


class PtyProcess:
    """Run Python code on a new terminal; `screen` is all that it wrote there."""

    def __init__(self, code: str, *, cwd, **environment: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))
        environment = {
            **{name: value for name, value in os.environ.items() if name not in NOT_TAKEN_OVER},
            **{"TERM": "xterm-256color", "COLORTERM": "truecolor", "PROMPT_TOOLKIT_NO_CPR": "1"},
            **{"GEMMA3VL_CACHE": str(cwd / "cache"), **environment},
        }

        def become_its_session():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            **{"stdin": theirs, "stdout": theirs, "stderr": theirs, "cwd": cwd},
            env=environment,
            preexec_fn=become_its_session,
        )
        os.close(theirs)
        self._ours = ours
        self.screen, self._seen = "", 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, text: str, *, seconds: float = 30) -> None:
        """Wait until `text` is written, after what was waited for last."""
        end = time.monotonic() + seconds
        while (found := self.screen.find(text, self._seen)) < 0:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} never came; there is {self.screen[-2000:]!r}"
            if select.select([self._ours], [], [], left)[0]:
                try:
                    piece = os.read(self._ours, 1 << 16).decode(errors="replace")
                except OSError:  # the process has ended, and with it its terminal
                    piece = ""
                assert piece, f"{text!r} never came; it ended with {self.screen[-2000:]!r}"
                self.screen += piece
        self._seen = found + len(text)

    def ends_with(self, *, seconds: float = 20) -> int:
        """Read on until the process has ended, and return its exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if select.select([self._ours], [], [], 0.1)[0]:
                    self.screen += os.read(self._ours, 1 << 16).decode(errors="replace")
            except OSError:
                break
        return self.process.wait(timeout=seconds)
