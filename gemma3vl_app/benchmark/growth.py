"""How cost grows with pictures, turns, users, context: `python -m gemma3vl_app.benchmark.growth`.

Prints tables for docs/performance.md. Each row is the middle of several, over conversations that
the caches have not seen, but for the turns, which is what caches are for.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

from gemma3vl_app.backends.local import LocalBackend
from gemma3vl_app.benchmark.models import WORD, drawn_picture
from gemma3vl_app.benchmark.speed import random_kv, step_sec
from gemma3vl_app.engine.model import TextModel
from gemma3vl_app.generation import Answer, Greedy
from gemma3vl_app.loading.loader import LoadedModel, load_model
from gemma3vl_app.messages import Conversation

CONTEXTS = (512, 2048, 8192, 32_768)
PICTURES = (1, 2, 4, 8)
TURNS = (1, 2, 4, 8, 16)
USERS = (1, 2, 4, 8)
TURN_WORDS, ANSWER_TOKENS, REPEATS = 60, 16, 3

Row = tuple[str, ...]


def main() -> None:
    """Measure a model and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m gemma3vl_app.benchmark.growth")
    parser.add_argument("model", nargs="?", default="demo", help="as in `gemma3vl chat --model`")
    for table in tables(load_model(parser.parse_args().model)):
        sys.stdout.write("\n".join(table) + "\n\n")
        sys.stdout.flush()


def tables(loaded: LoadedModel) -> Iterator[list[str]]:
    """Yield one table after the other, as lines of Markdown; the model belongs to this."""
    longest = int(loaded.model.config.get_text_config().max_position_embeddings)
    yield _table(
        ("tokens of context", "a token", "keys and values"),
        [_context(loaded, each) for each in CONTEXTS if each < longest],
    )
    with LocalBackend(loaded, speculation="off") as backend:
        measured = _Growth(backend)
        yield _table(
            ("pictures in a question", "seeing them", "reading the prompt", "first word after"),
            [measured.pictures(each) for each in PICTURES],
        )
        yield _table(
            ("turn", "tokens so far", "first word after", "with nothing kept"),
            measured.turns(),
        )
        yield _table(
            ("conversations at once", "tokens/s each", "tokens/s together"),
            [measured.users(each) for each in USERS],
        )


def _context(loaded: LoadedModel, context: int) -> Row:
    kv = random_kv(TextModel(loaded.model), context)
    mib = sum(keys.nbytes + values.nbytes for _, keys, values in kv.parts()) / 2**20
    return f"{context:,}", f"{1000 * step_sec(loaded.model, context):.0f} ms", f"{mib:.0f} MiB"


class _Growth:
    """What is asked of a backend; nothing is known to its caches unless a session says so."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self._numbers = itertools.count()

    def _ask(self, conversation: Conversation, session: str = "") -> Answer:
        return self._backend.stream(
            conversation,
            sampling=Greedy(),
            max_new_tokens=ANSWER_TOKENS,
            session=session or f"new {next(self._numbers)}",
        ).answer

    def pictures(self, count: int) -> Row:
        """Ask about `count` new pictures."""
        asked = Conversation().user(*map(drawn_picture, range(count)), "What do you see?")
        answers = [self._ask(asked) for _ in range(REPEATS)]
        return (
            str(count),
            _seconds(answers, lambda answer: answer.timing.vision_sec),
            _seconds(answers, lambda answer: answer.timing.prefill_sec),
            _seconds(answers, lambda answer: answer.timing.ttft_sec),
        )

    def turns(self) -> list[Row]:
        """Talk about a picture for many turns; each is asked once with nothing kept, too."""
        rows: list[Row] = []
        talk = Conversation()
        for turn in range(1, max(TURNS) + 1):
            picture = (drawn_picture(0),) if turn == 1 else ()
            talk = talk.user(*picture, WORD * TURN_WORDS)
            answer = self._ask(talk, "one talk")
            if turn in TURNS:
                anew = self._ask(talk)
                known, unknown = (each.timing.ttft_sec for each in (answer, anew))
                tokens = answer.usage.prompt_tokens
                rows.append((str(turn), f"{tokens:,}", f"{known:.2f} s", f"{unknown:.2f} s"))
            talk = talk.assistant(answer.text)
        return rows

    def users(self, count: int) -> Row:
        """Let `count` conversations be answered at once."""
        streams = [
            self._backend.stream(
                Conversation().user(WORD * TURN_WORDS),
                sampling=Greedy(),
                max_new_tokens=4 * ANSWER_TOKENS,
                session=f"new {next(self._numbers)}",
            )
            for _ in range(count)
        ]
        each = statistics.median(stream.answer.timing.tokens_per_sec for stream in streams)
        return str(count), f"{each:.1f}", f"{count * each:.1f}"


def _seconds(answers: Sequence[Answer], of: Callable[[Answer], float]) -> str:
    return f"{statistics.median(map(of, answers)):.2f} s"


def _table(head: Row, rows: list[Row]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


if __name__ == "__main__":
    main()
