"""A worker process whose image library is in the attacker's hands: the file's name says how."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys
import threading

from PIL import Image

from gemma3vl_app import picture_process
from gemma3vl_app.errors import PictureError
from gemma3vl_app.picture_decoding import PictureLimits

PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; from tests.dangerous_decoding import main; main()"
)
ANSWERS = 4  # where answers go: the descriptor after 0, 1 and 2, and where jobs come from

real_decode = picture_process.decode
damaged: list[str] = []


def attempt(what: str) -> None:
    """Do what a worker must not be able to do."""
    if what == "read a file":
        os.close(os.open("/etc/hosts", os.O_RDONLY))
    elif what == "connect":
        socket.socket().close()
    elif what == "start a program":
        os.set_inheritable(ANSWERS, True)
        answer = picture_process._ANSWER.pack(b"E", 7, 0) + b"started"
        program = f"import os; os.write({ANSWERS}, {answer!r})"
        os.execv(sys.executable, [sys.executable, "-c", program])
    elif what == "start a process":
        os.fork()


def decode(data: bytes, name: str, limits: PictureLimits) -> Image.Image:
    """Decode as ever, but for the names below."""
    if damaged:
        os._exit(1)
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name == "sleep":
        threading.Event().wait()
    elif name == "compute":
        while True:
            pass
    elif name == "memory":
        mmap.mmap(-1, 8 << 30)  # the system would give it, and use none before it is written to
    elif name == "damage":
        damaged.append(name)
    elif name == "huge":
        return Image.new("RGB", (limits.max_side + 1, 1))
    elif name == "nonsense":
        os.write(ANSWERS, b"?" * 100)
    elif name == "secrets":
        raise PictureError(" ".join(sorted(os.environ)))
    elif name == "words":
        raise PictureError("a\x1b[31m\n" + "b" * 5000)
    elif name.startswith("may "):
        try:
            attempt(name.removeprefix("may "))
        except OSError as error:
            raise PictureError("refused") from error
    return real_decode(data, name, limits)


def main() -> None:
    """Be a worker process with that decoder."""
    picture_process.decode = decode
    picture_process.main()
