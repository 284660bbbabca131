"""Run as a program: a conversion whose process kills itself when it has written so many files.

Of a form without shards (`shard_bytes` is "none"): so many tensors.
"""

import os
import signal
import sys

from gemma3vl_app.conversion.converting import convert


def main(source: str, target: str, to: str, shard_bytes: str, files: str) -> None:
    begun = set()

    def kill_at(step):
        if step.stage == "convert" and step.message.startswith("Writing "):
            begun.add(step.message)
            if len(begun) > int(files):
                os.kill(os.getpid(), signal.SIGKILL)

    shards = {} if shard_bytes == "none" else {"shard_bytes": int(shard_bytes)}
    convert(source, target, to, **shards, progress=kill_at)


if __name__ == "__main__":
    main(*sys.argv[1:])
