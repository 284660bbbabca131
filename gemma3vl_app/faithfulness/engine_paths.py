"""The engine's ways to come to an answer, each made to happen, and how far it is from the record.

What is read gives whole distributions over the answer; what is written gives the likeliest tokens
as the engine chose them. Shapes: n tokens of the answer, V vocabulary, T soft tokens, D width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from gemma3vl_app.engine.disk_cache import DiskSettings
from gemma3vl_app.engine.engine import Engine, EngineLimits
from gemma3vl_app.engine.sequence import Request
from gemma3vl_app.engine.sequence import Sequence as Running
from gemma3vl_app.engine.speculation.policy import PassCosts
from gemma3vl_app.engine.speculation.speculation import Speculation
from gemma3vl_app.engine.traces import Tracing, known_tokens
from gemma3vl_app.faithfulness.measuring import Rows, compare_answer, compare_logits
from gemma3vl_app.faithfulness.reader import Reader, Reading
from gemma3vl_app.generation import Answer, Greedy
from gemma3vl_app.loading import compiled
from gemma3vl_app.prompting.prompt import beginning, extended
from gemma3vl_app.traces import Distributions, TracedToken

SCOPE = (None, "verify")  # no adapter, and a session of its own
ALTERNATIVES = 20  # told with each written token
DISK_BYTES = 8 << 30
WHOLE = EngineLimits(unit_sec=1e9, chunk_tokens=2048)
SMALL = EngineLimits(unit_sec=1e-9, chunk_tokens=32)  # one layer of the least chunk a unit

Features = dict[bytes, torch.Tensor]  # (T, D) by picture key


class PathRuns:
    """One loaded model on every path; each gives what was found at each prompt, and a note.

    Pictures are encoded by the first engine and known to the others, or a slow processor would
    spend its time on the same pictures.
    """

    def __init__(self, reader: Reader, readings: Sequence[Reading]) -> None:
        self._reader = reader
        self._readings = [each for each in readings if each.answer_ids]
        self.features: Features = {}

    # --- the paths ---

    def at_once(self) -> tuple[list[Rows], str]:
        """Read each prompt in as few chunks as it fits into."""
        with self._engine(WHOLE) as engine:
            return [self._read(engine, each)[0] for each in self._readings], ""

    def by_transformers(self) -> tuple[list[Rows], str]:
        """Read each prompt by transformers' own pass, with this form's modules in it."""
        self._reader.take_back(self.features)
        found = [self._reader.read(each.prompt, each.answer_ids) for each in self._readings]
        pairs = zip(self._readings, found, strict=True)
        return [compare_logits(_answer_rows(a), _answer_rows(b)) for a, b in pairs], ""

    def without_kernels(self) -> tuple[list[Rows], str]:
        """Read each prompt with torch in the place of the compiled kernels."""
        with compiled.switched_off(), self._engine(WHOLE) as engine:
            return [self._read(engine, each)[0] for each in self._readings], ""

    def in_chunks(self) -> tuple[list[Rows], str]:
        """Read each prompt in the smallest chunks, a layer at a time."""
        with self._engine(SMALL) as engine:
            return [self._read(engine, each)[0] for each in self._readings], ""

    def after_a_prefix(self) -> tuple[list[Rows], str]:
        """Read each prompt again, which the engine still knows."""
        with self._engine(WHOLE) as engine:
            for each in self._readings:
                self._write(engine, [each], 1)
            return self._known([self._read(engine, each) for each in self._readings])

    def after_a_restart(self) -> tuple[list[Rows], str]:
        """Read each prompt again in another engine, which finds it on the disk."""
        with tempfile.TemporaryDirectory(prefix="gemma3vl-verify-") as folder:
            with self._engine(WHOLE, disk=Path(folder)) as engine:
                for each in self._readings:
                    self._write(engine, [each], 1)
            with self._engine(WHOLE, disk=Path(folder)) as engine:
                return self._known([self._read(engine, each) for each in self._readings])

    def alone(self) -> tuple[list[Rows], str]:
        """Write each answer by itself, a token at a time."""
        with self._engine(WHOLE) as engine:
            return [self._written(engine, [each])[0][0] for each in self._readings], ""

    def together(self) -> tuple[list[Rows], str]:
        """Write all answers in the same passes."""
        with self._engine(EngineLimits(max_running=len(self._readings))) as engine:
            return self._written(engine, self._readings)[0], ""

    def guessed_ahead(self) -> tuple[list[Rows], str]:
        """Write each answer with guesses: right ones, and a wrong one at the end of each."""
        known = {id(each.prompt): list(each.answer_ids) for each in self._readings}
        guessing = Speculation(_Recorded(known), costs=_NoCosts())
        with self._engine(WHOLE, guessing) as engine:
            rows, answers = self._written(engine, self._readings)
        proposed = sum(each.usage.proposed_tokens for each in answers)
        accepted = sum(each.usage.accepted_tokens for each in answers)
        return rows, f"{accepted} of {proposed} guesses right"

    @property
    def readings(self) -> list[Reading]:
        """The readings that the rows of each path are for: those with an answer, in order."""
        return self._readings

    # --- how ---

    @contextmanager
    def _engine(
        self,
        limits: EngineLimits,
        speculation: Speculation | None = None,
        *,
        disk: Path | None = None,
    ) -> Iterator[Engine]:
        """Run an engine over the model; what it has seen of pictures is kept."""
        settings = None
        if disk is not None:
            tokens = self._reader.format.image_tokens
            settings = DiskSettings(
                folder=disk, budget_bytes=DISK_BYTES, identity="verify", image_tokens=tokens
            )
        engine = Engine(
            self._reader.model,
            self._reader.tokenizer,
            self._reader.format,
            stop_ids=(),  # answers are as long as the reference's
            limits=limits,
            speculation=speculation,
            disk=settings,
        )
        try:
            for key, features in self.features.items():
                engine.features.put((SCOPE, key), features)
            yield engine
            for reading in self._readings:
                for image in reading.prompt.images:
                    known = engine.features.get((SCOPE, image.key))
                    if known is not None:
                        self.features.setdefault(image.key, known)
        finally:
            engine.close()

    def _read(self, engine: Engine, reading: Reading) -> tuple[Rows, int]:
        """Return how the answer's distributions compare, and how many tokens were known."""
        answer = tuple(TracedToken(id, "") for id in reading.answer_ids)
        whole = extended(reading.prompt, reading.answer_ids)
        tracing = Tracing(Distributions(top=1, whole=True), whole, answer, ())
        asked = Request(
            prompt=beginning(whole, known_tokens(tracing)),
            sampling=Greedy(),
            scope=SCOPE,
            tracing=tracing,
        )
        usage = engine.submit(asked).answer.usage
        expected = _answer_rows(reading).log_softmax(-1)
        return compare_logits(expected, torch.from_numpy(tracing.result.whole)), usage.cached_tokens

    def _write(self, engine: Engine, readings: Sequence[Reading], tokens: int) -> list[Answer]:
        """Write answers of at most so many tokens, all at the same time."""
        streams = [
            engine.submit(
                Request(
                    prompt=each.prompt,
                    sampling=Greedy(),
                    max_new_tokens=min(tokens, len(each.answer_ids)),
                    logprobs=ALTERNATIVES,
                    scope=SCOPE,
                )
            )
            for each in readings
        ]
        return [stream.answer for stream in streams]

    def _written(
        self, engine: Engine, readings: Sequence[Reading]
    ) -> tuple[list[Rows], list[Answer]]:
        longest = max(len(each.answer_ids) for each in readings)
        answers = self._write(engine, readings, longest)
        pairs = zip(readings, answers, strict=True)
        return [compare_answer(_answer_rows(a), b.tokens) for a, b in pairs], answers

    def _known(self, found: list[tuple[Rows, int]]) -> tuple[list[Rows], str]:
        """Return the rows, and say how much of the prompts was known beforehand."""
        known = sum(cached for _, cached in found)
        total = sum(len(each.prompt) for each in self._readings)
        return [rows for rows, _ in found], f"{known:,} of {total:,} tokens were known"


def _answer_rows(reading: Reading) -> torch.Tensor:
    """Return the logits (n + 1, V) that predict the answer, and what would follow it."""
    return reading.logits[-(len(reading.answer_ids) + 1) :]


class _Recorded:
    """Guesses what the reference said, but for the last token of each guess, which is wrong."""

    token_sec = 0.0

    def __init__(self, answers: dict[int, list[int]]) -> None:
        self._answers = answers  # by the identity of the prompt

    def begin_pass(self) -> None:
        """Nothing: what is said is known."""

    def available(self, sequence: Running) -> int:
        """Return how many tokens of the reference's answer are left; none once they differ."""
        return len(self._rest(sequence))

    def propose(self, wanted: Sequence[tuple[Running, int]]) -> list[list[int]]:
        """Return the reference's next tokens, the last one of them replaced."""
        guesses = [self._rest(sequence)[:count] for sequence, count in wanted]
        return [[*guess[:-1], guess[-1] ^ 1] for guess in guesses]

    def forget(self, sequence: Running) -> None:
        """Nothing: nothing is kept."""

    def _rest(self, sequence: Running) -> list[int]:
        answer, said = self._answers[id(sequence.request.prompt)], sequence.generated
        return answer[len(said) :] if answer[: len(said)] == said else []


class _NoCosts(PassCosts):
    """Lets everything be guessed: whether it pays is not what is asked."""

    def stale(self, rows: int) -> bool:
        """Return that nothing has to be measured first."""
        return False

    def seconds(self, rows: int) -> float:
        """Return the same for every pass."""
        return 1.0


PathRun = Callable[[PathRuns], tuple[list[Rows], str]]
PATHS: dict[str, PathRun] = {
    "engine, prompt at once": PathRuns.at_once,
    "transformers' pass": PathRuns.by_transformers,
    "without compiled kernels": PathRuns.without_kernels,
    "prompt in chunks": PathRuns.in_chunks,
    "prefix reused": PathRuns.after_a_prefix,
    "disk cache": PathRuns.after_a_restart,
    "written alone": PathRuns.alone,
    "written together": PathRuns.together,
    "guessed ahead": PathRuns.guessed_ahead,
}
AT_ONCE, NO_KERNELS = "engine, prompt at once", "without compiled kernels"
OF_EVERY_FORM = (AT_ONCE, "transformers' pass", NO_KERNELS, "written together")
