"""The engine's ways to come to an answer, each made to happen, and how far it is from the record.

What is read gives whole distributions over the answer; what is written gives the likeliest tokens
as the engine chose them. Shapes: n tokens of the answer, V vocabulary, T soft tokens, D width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from gemma3vl_app.engine.disk_cache import DiskSettings
from gemma3vl_app.engine.engine import Engine, EngineLimits
from gemma3vl_app.engine.sequence import Request
from gemma3vl_app.engine.speculation.speculation import Speculation
from gemma3vl_app.engine.traces import Tracing, known_tokens
from gemma3vl_app.faithfulness.guesses import Counting, NoCosts, Recorded
from gemma3vl_app.faithfulness.measuring import Rows, compare_answer, compare_logits
from gemma3vl_app.faithfulness.reader import Reader, Reading
from gemma3vl_app.faithfulness.record import Record
from gemma3vl_app.generation import Answer, Greedy
from gemma3vl_app.loading import compiled
from gemma3vl_app.loading.norms import plain_norms
from gemma3vl_app.prompting.prompt import beginning, extended
from gemma3vl_app.stream import Stream
from gemma3vl_app.traces import Distributions, TracedToken

SCOPE = (None, "verify")  # no adapter, and a session of its own
ALTERNATIVES = 20  # told with each written token
DISK_BYTES = 8 << 30
_ALL_PICTURES = 1 << 60  # bytes: what an engine encoded is told, so none may be dropped
WHOLE = EngineLimits(unit_sec=1e9, chunk_tokens=2048, feature_budget_bytes=_ALL_PICTURES)
# One layer of the least chunk a unit
SMALL = EngineLimits(unit_sec=1e-9, chunk_tokens=32, feature_budget_bytes=_ALL_PICTURES)

Features = dict[bytes, torch.Tensor]  # (T, D) by picture key


@dataclass(frozen=True)
class Found:
    """One prompt's answer next to the reference's, and to this form's own pass by transformers."""

    rows: Rows
    own_rows: Rows | None


@dataclass(frozen=True)
class PathRun:
    """What came of a path at each prompt; None where what the path is about did not happen.

    `features` are those of the pictures that were encoded on this path. `note` says what happened.
    """

    found: list[Found | None]
    note: str = ""
    features: Features | None = None


class PathRuns:
    """One loaded model on every path.

    Transformers' pass and the first engine encode pictures themselves; the other engines are given
    the first one's features, or a slow processor would spend its time on the same pictures.
    """

    def __init__(self, reader: Reader, readings: Sequence[Reading], own_pass: Record) -> None:
        """Take a model; what transformers computes of it goes to `own_pass`."""
        self._reader = reader
        self._readings = [each for each in readings if each.answer_ids]
        self._own_pass = own_pass
        self._features: Features = {}
        self._alone: list[Answer] = []

    # --- the paths ---

    def by_transformers(self) -> PathRun:
        """Read each prompt by transformers' own pass, with this form's weights in it."""
        self._reader.take_back()
        found: list[Found | None] = []
        features: Features = {}
        with plain_norms(self._reader.model):
            for each in self._readings:
                read = self._reader.read(each.prompt, each.answer_ids)
                logits = _answer_rows(read)
                positions = read.positions[-len(logits) :]
                self._own_pass.add(replace(read, positions=positions, logits=logits, features={}))
                features |= read.features
                found.append(Found(compare_logits(_answer_rows(each), logits), None))
        return PathRun(found, features=features)

    def at_once(self) -> PathRun:
        """Read each prompt in as few chunks as it fits into."""
        return replace(self._all_read(WHOLE), features=dict(self._features))

    def without_kernels(self) -> PathRun:
        """Read each prompt with torch in the place of the compiled kernels."""
        with compiled.switched_off():
            return self._all_read(WHOLE)

    def in_chunks(self) -> PathRun:
        """Read each prompt in the smallest chunks, a layer at a time."""
        return self._all_read(SMALL)

    def after_a_prefix(self) -> PathRun:
        """Read each prompt again, which the engine still knows."""
        with self._engine(WHOLE) as engine:
            for each in self._readings:
                self._write(engine, [each], 1)
            return self._known(engine)

    def after_a_restart(self) -> PathRun:
        """Read each prompt again in another engine, which finds it on the disk alone."""
        with tempfile.TemporaryDirectory(prefix="gemma3vl-verify-") as folder:
            with self._engine(WHOLE, disk=Path(folder)) as engine:
                for each in self._readings:
                    self._write(engine, [each], 1)
            nothing_kept = replace(WHOLE, prefix_budget_bytes=0)
            with self._engine(nothing_kept, disk=Path(folder)) as engine:
                return self._known(engine)

    def alone(self) -> PathRun:
        """Write each answer by itself, a token at a time."""
        return PathRun(self._written(self._written_alone()))

    def together(self) -> PathRun:
        """Write all answers in the same passes."""
        # The first token comes of the prompt: an answer of one token takes part in no pass.
        most = sum(len(each.answer_ids) > 1 for each in self._readings)
        if most < 2:
            return self._not_run("there are no two answers to write together; ask more questions")
        counting = Counting()
        limits = replace(WHOLE, max_running=len(self._readings))
        with self._engine(limits, counting) as engine:
            answers = self._write(engine, self._readings)
        note = f"{counting.widest} of {len(self._readings)} answers in one pass"
        if counting.widest < most:
            return self._not_run(note)
        happened = [len(each.answer_ids) > 1 for each in self._readings]
        return PathRun(_where(happened, self._written(answers)), note)

    def guessed_ahead(self) -> PathRun:
        """Write each answer with guesses: right ones, and a wrong one at the end of each.

        Right is what this form writes alone, which may be something else than the reference says.
        """
        known = {
            id(each.prompt): [token.id for token in answer.tokens]
            for each, answer in zip(self._readings, self._written_alone(), strict=True)
        }
        guessing = Speculation(Recorded(known), costs=NoCosts())
        with self._engine(WHOLE, guessing) as engine:
            answers = self._write(engine, self._readings)
        counts = [(each.usage.accepted_tokens, each.usage.proposed_tokens) for each in answers]
        right, proposed = (sum(each) for each in zip(*counts, strict=True))
        happened = [0 < accepted < all_of_them for accepted, all_of_them in counts]
        return PathRun(
            _where(happened, self._written(answers)), f"{right} of {proposed} guesses right"
        )

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
            for key, features in self._features.items():
                engine.features.put((SCOPE, key), features)
            yield engine
            for reading in self._readings:
                for image in reading.prompt.images:
                    known = engine.features.get((SCOPE, image.key))
                    if known is not None:
                        self._features.setdefault(image.key, known)
        finally:
            engine.close()

    def _all_read(self, limits: EngineLimits) -> PathRun:
        with self._engine(limits) as engine:
            return PathRun([self._read(engine, at)[0] for at in range(len(self._readings))])

    def _read(self, engine: Engine, at: int) -> tuple[Found, int]:
        """Return how an answer's distributions compare, and how many tokens were known."""
        reading = self._readings[at]
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
        computed = torch.from_numpy(tracing.result.whole)  # log-probabilities (n + 1, V)

        def compare(expected: torch.Tensor) -> Rows:
            return compare_logits(expected.log_softmax(-1), computed)

        return self._found(at, compare), usage.cached_tokens

    def _write(
        self, engine: Engine, readings: Sequence[Reading], tokens: int | None = None
    ) -> list[Answer]:
        """Write answers as long as the reference's, or shorter, all at the same time."""
        requests = [
            Request(
                prompt=each.prompt,
                sampling=Greedy(),
                max_new_tokens=tokens or len(each.answer_ids),
                logprobs=ALTERNATIVES,
                scope=SCOPE,
            )
            for each in readings
        ]

        def submit_all() -> list[Stream]:
            return [engine.submit(request) for request in requests]

        # On the engine's thread, which begins none of them before it has all.
        return [stream.answer for stream in engine.call(submit_all)]

    def _written_alone(self) -> list[Answer]:
        if not self._alone:
            with self._engine(WHOLE) as engine:
                self._alone = [self._write(engine, [each])[0] for each in self._readings]
        return self._alone

    def _written(self, answers: Sequence[Answer]) -> list[Found | None]:
        """Return how written answers compare, one for each reading."""
        found: list[Found | None] = []
        for at, answer in enumerate(answers):
            ids = self._readings[at].answer_ids
            compare = partial(compare_answer, tokens=answer.tokens, answer_ids=ids)
            found.append(self._found(at, compare))
        return found

    def _found(self, at: int, compare: Callable[[torch.Tensor], Rows]) -> Found:
        """Compare with the logits (n + 1, V) of the reference, and with those of the own pass."""
        own = _answer_rows(self._own_pass[at]) if at < len(self._own_pass) else None
        return Found(
            compare(_answer_rows(self._readings[at])), None if own is None else compare(own)
        )

    def _known(self, engine: Engine) -> PathRun:
        """Read each prompt, and say how much was known; where it was not, nothing was shown."""
        read = [self._read(engine, at) for at in range(len(self._readings))]
        lengths = [len(each.prompt) for each in self._readings]
        happened = [cached >= length - 1 for (_, cached), length in zip(read, lengths, strict=True)]
        note = f"{sum(cached for _, cached in read):,} of {sum(lengths):,} tokens were known"
        return PathRun(_where(happened, [found for found, _ in read]), note)

    def _not_run(self, why: str) -> PathRun:
        return PathRun([None] * len(self._readings), why)


def _where(happened: Sequence[bool], found: Sequence[Found | None]) -> list[Found | None]:
    """Return what was found where the path came about, None elsewhere."""
    return [each if so else None for so, each in zip(happened, found, strict=True)]


def _answer_rows(reading: Reading) -> torch.Tensor:
    """Return the logits (n + 1, V) that predict the answer, and what would follow it."""
    return reading.logits[-(len(reading.answer_ids) + 1) :]


AT_ONCE, NO_KERNELS = "engine, prompt at once", "without compiled kernels"
BY_TRANSFORMERS = "transformers' pass"
PATHS: dict[str, Callable[[PathRuns], PathRun]] = {  # the first two encode pictures themselves
    BY_TRANSFORMERS: PathRuns.by_transformers,
    AT_ONCE: PathRuns.at_once,
    NO_KERNELS: PathRuns.without_kernels,
    "prompt in chunks": PathRuns.in_chunks,
    "prefix reused": PathRuns.after_a_prefix,
    "disk cache": PathRuns.after_a_restart,
    "written alone": PathRuns.alone,
    "written together": PathRuns.together,
    "guessed ahead": PathRuns.guessed_ahead,
}
