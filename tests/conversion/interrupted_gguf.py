"""Run as a program: a conversion to GGUF whose process kills itself in the middle of a file."""

import os
import signal
import sys

from gemma3vl_app.conversion.converting import convert


def main(source: str, target: str, share: str) -> None:
    def kill_at(step):
        if step.message.startswith("Writing ") and step.done > float(share) * step.total:
            os.kill(os.getpid(), signal.SIGKILL)

    convert(source, target, "gguf", progress=kill_at)


if __name__ == "__main__":
    main(*sys.argv[1:])
