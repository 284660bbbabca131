"""The engine: takes prepared prompts, runs the model in one thread, streams answers.

Knows nothing of chat templates, files or HTTP; most callers want `gemma3vl_app.Chat`, which keeps
the conversation and goes through a backend. One step of the thread is: run the jobs of `call`, drop
what was cancelled, admit what waits, some prefill, one decode step for everything that runs.
Nothing else calls the model.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from gemma3vl_app.engine import failures
from gemma3vl_app.engine.decoding import Decoder, Keeper
from gemma3vl_app.engine.disk_cache import DiskCache, DiskSettings
from gemma3vl_app.engine.leaving import close_at_exit
from gemma3vl_app.engine.model import TextModel
from gemma3vl_app.engine.prefill import Prefill
from gemma3vl_app.engine.prefix import AnswerMemory, PrefixCache, Scope
from gemma3vl_app.engine.prompt_work import PromptWork
from gemma3vl_app.engine.queue import WaitingQueue
from gemma3vl_app.engine.sequence import Request, Sequence
from gemma3vl_app.engine.speculation.speculation import Speculation
from gemma3vl_app.engine.vision import FeatureCache, VisionEncoder
from gemma3vl_app.engine.workers import release_workers
from gemma3vl_app.errors import BusyError, ContextLengthError, EngineError
from gemma3vl_app.generation import Chunk, FinishReason, Status
from gemma3vl_app.loading.adapters import Adapters
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.prompt import PreparedPrompt
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.stream import Stream

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """Bounds of one engine; `unit_sec` is about how long prefill keeps running answers waiting.

    `chunk_tokens` of a prompt go through the model together at least, some layers a unit where that
    takes longer: with 4 bits, 64 at once cost nearly twice as much each, 512 hardly less.
    `context_tokens` shortens the model's own context, to what memory was planned for.
    `disk_budget_bytes` bounds what a backend lets spill to the disk; 0 means nothing.
    """

    max_running: int = 16
    max_waiting: int = 64
    prefix_budget_bytes: int = 2 << 30
    feature_budget_bytes: int = 512 << 20
    disk_budget_bytes: int = 0
    unit_sec: float = 0.5
    chunk_tokens: int = 320
    context_tokens: int | None = None


class Engine:
    """Continuous batching over one Gemma 3 model; every public method is thread-safe."""

    def __init__(
        self,
        model: Gemma3ForConditionalGeneration | Gemma3ForCausalLM,
        tokenizer: TextTokenizer,
        prompt_format: PromptFormat,
        *,
        stop_ids: Collection[int],
        limits: EngineLimits | None = None,
        speculation: Speculation | None = None,
        name: str = "",
        disk: DiskSettings | None = None,
    ) -> None:
        """Start the thread; the model belongs to it from now on.

        `speculation` guesses tokens ahead; None computes one at a time. `name` is for messages.
        `disk` lets what is computed spill to the disk.
        """
        self.limits = limits or EngineLimits()
        self.adapters = Adapters(model)
        self.answers = AnswerMemory()
        self._name = f"The model {name!r}" if name else "The model"
        self._tokenizer = tokenizer
        self._text_model = TextModel(model)
        self.disk: DiskCache | None = None
        if disk is not None:
            self.disk = DiskCache(disk, self._text_model.layout, self.adapters.digest)
        self.prefixes = PrefixCache(self.limits.prefix_budget_bytes)
        self.features = FeatureCache(self.limits.feature_budget_bytes, self.disk)
        longest = self._text_model.context_tokens
        self._context_tokens = min(longest, self.limits.context_tokens or longest)
        unit_sec, chunk_tokens = self.limits.unit_sec, self.limits.chunk_tokens
        vision = None
        if isinstance(model, Gemma3ForConditionalGeneration):
            vision = VisionEncoder(model.model, unit_sec=unit_sec)
        self._prefill = Prefill(
            self._text_model,
            vision,
            self.features,
            prompt_format,
            unit_sec=unit_sec,
            chunk_tokens=chunk_tokens,
        )
        self._prompts = PromptWork(
            self._text_model,
            self._prefill,
            self.prefixes,
            self.disk,
            tokenizer,
            unit_sec=unit_sec,
            computed=self._begin_decoding,
            ended=self._end_without_answer,
        )
        self._decoder = Decoder(
            self._text_model,
            self.adapters,
            Keeper(
                finish=self._finish,
                failing_alone=self._failing_alone,
                pass_failed=self._make_room,
            ),
            stop_ids=stop_ids,
            speculation=speculation,
        )
        self._changed = threading.Condition()  # guards what follows
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._waiting = WaitingQueue()
        self._prefilling: deque[Sequence] = deque()
        self._decoding: list[Sequence] = []
        self._stepped_at = time.monotonic()
        self._idle = False  # the thread has delivered everything and waits
        self._draining = False
        self._closed = False
        self.failed = False  # the thread has ended by a defect: nobody has closed it
        release_workers()  # of whoever has loaded the model
        self._thread = threading.Thread(target=self._run, name="gemma3vl-engine", daemon=True)
        self._thread.start()
        close_at_exit(self)

    # --- what other threads call ---

    @property
    def context_tokens(self) -> int:
        """The longest sequence, prompt and answer together, in tokens."""
        return self._context_tokens

    @property
    def queued(self) -> tuple[int, int]:
        """How many requests the model works on, and how many wait."""
        return len(self._prefilling) + len(self._decoding), len(self._waiting)

    @property
    def still_sec(self) -> float:
        """Seconds since the thread began its last step, 0 while it has nothing to do."""
        return time.monotonic() - self._stepped_at if self._has_work() else 0.0

    @property
    def takes_requests(self) -> bool:
        """Whether `submit` would queue a request: neither draining nor closed."""
        return not (self._closed or self._draining)

    def submit(self, request: Request) -> Stream:
        """Queue a request and return its stream.

        Raises `ContextLengthError` for a prompt that leaves no room for an answer, `BusyError`
        when too many requests wait already, `EngineError` after `drain` or `close`.
        """
        room = self.context_tokens - len(request.prompt.ids)
        if room < 1:
            raise ContextLengthError(
                f"The conversation takes {len(request.prompt.ids):,} tokens, "
                f"{request.prompt.image_tokens:,} of them for pictures; the model's context holds "
                f"{self.context_tokens:,}. Remove pictures or earlier turns, or start a new chat."
            )
        request = replace(request, max_new_tokens=min(request.max_new_tokens, room))
        sequence = Sequence(request, Stream(on_cancel=self._notify), self._tokenizer)
        with self._changed:
            if self._closed:
                raise EngineError(self._closed_message())
            if self._draining:
                raise EngineError(
                    f"{self._name} is being unloaded and takes no new requests. "
                    "Choose the model that replaces it, or load it again."
                )
            if len(self._waiting) >= self.limits.max_waiting:
                raise BusyError(
                    f"{len(self._waiting)} requests are waiting already; try again in a moment."
                )
            self._wake_up()
            ahead = self._waiting.append(sequence)
            sequence.stream.put(Chunk(status=Status("queued", ahead)))
        return sequence.stream

    def covered_tokens(self, scope: Scope, prompt: PreparedPrompt) -> int:
        """Return how many tokens of `prompt` need not be computed: from memory, or the disk."""
        known = self.prefixes.covered_tokens(scope, prompt)
        found = self.disk.find(scope, prompt, known=known) if self.disk is not None else None
        return known if found is None else found.length

    def call(self, function: Callable[[], Result]) -> Result:
        """Run `function` on the engine's thread between two steps, and return what it returns.

        Nothing else touches the model meanwhile; answers go on afterwards. Raises what `function`
        raises, and `EngineError` after `close`. Not for the engine's own thread, which would wait
        for itself.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("call() was used on the engine's own thread")
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise EngineError(self._closed_message())
            self._wake_up()
            self._jobs.append((function, future))
        return future.result()

    def drain(self, timeout_sec: float) -> bool:
        """Refuse new requests from now on and wait for those that run; True when all have ended.

        There is no way back: `close` comes next.
        """
        with self._changed:
            self._draining = True
            return self._changed.wait_for(
                lambda: self._closed or (self._idle and not self._has_work()), timeout_sec
            )

    def close(self, timeout_sec: float | None = None) -> None:
        """Fail every open request, stop the thread, drop all caches and let go of the model.

        Waits for the step that runs, at most `timeout_sec` seconds. Safe to call twice.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_sec)

    def _wake_up(self) -> None:
        """Let the thread look for work; whoever was idle has not stood still. Needs the lock."""
        if not self._has_work():
            self._stepped_at = time.monotonic()
        self._changed.notify_all()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _closed_message(self) -> str:
        return f"{self._name} has been closed. Load it again, or choose another one."

    # --- the thread ---

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._run_jobs()
                self._drop_cancelled()
                self._admit()
                self._prefill_unit()
                self._decoder.step(list(self._decoding))
        except BaseException:  # a defect of this loop itself, or a device that is lost
            self.failed = True
            raise
        finally:  # nobody may be left waiting
            with self._changed:
                self._closed = True
            for sequence in self._all():
                self._remove(sequence)
                sequence.stream.fail(
                    EngineError(
                        f"{self._name} was closed before the answer was complete. "
                        "Load it again, or choose another one, and ask once more."
                    )
                )
            for _, future in self._jobs:
                future.set_exception(EngineError(self._closed_message()))
            self._jobs.clear()
            self._drop_caches()
            self.answers.clear()
            del self._text_model, self._prefill, self._decoder  # what holds the model
            del self._prompts  # and so does this
            if self.disk is not None:
                self.disk.close()
            self.adapters.forget_model()

    def _make_room(self, error: Exception) -> None:
        """Free what can be computed again, if `error` says that memory ran out or it is nonsense.

        Whatever the nonsense came from, such as one overflow, it would come again from a cache.
        """
        if failures.needs_empty_caches(error):
            self._drop_caches()
            if self.disk is not None:
                self.disk.drop_waiting()

    def _drop_caches(self) -> None:
        """Free what can be computed again."""
        self.prefixes.clear()
        self.features.clear()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when the engine is closed."""
        with self._changed:
            while not self._closed and not self._has_work():
                self._idle = True
                self._changed.notify_all()  # whoever drains waits for this
                release_workers()  # another engine may have work
                self._changed.wait()
            self._idle = False
            self._stepped_at = time.monotonic()
            return not self._closed

    def _has_work(self) -> bool:
        return bool(self._jobs or self._waiting or self._prefilling or self._decoding)

    def _run_jobs(self) -> None:
        """Run what `call` was given; whatever it raises goes to the caller."""
        while True:
            with self._changed:
                if self._closed or not self._jobs:
                    return
                function, future = self._jobs.popleft()
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)
            del function, future  # or they would keep what they hold until the next job

    @contextmanager
    def _failing_alone(self, sequence: Sequence) -> Iterator[None]:
        """Turn whatever is raised inside into the failure of this one request."""
        try:
            yield
        except Exception as error:
            self._fail(sequence, error)
            if failures.is_device_lost(error):
                raise  # out of the loop: every other request would fail as well, one by one

    def _drop_cancelled(self) -> None:
        for sequence in self._all():
            if sequence.stream.cancelled:
                with self._failing_alone(sequence):
                    self._finish(sequence, "cancelled")

    def _admit(self) -> None:
        """Start as many waiting requests as there is room for, and tell the others their place."""
        with self._changed:
            at_work = [*self._prefilling, *self._decoding]
            admitted = self._waiting.take(self.limits.max_running - len(at_work), at_work)
            self._prefilling += admitted
            if admitted:
                for ahead, sequence in enumerate(self._waiting):
                    sequence.stream.put(Chunk(status=Status("queued", ahead)))
        for sequence in admitted:  # without the lock: the disk may be looked through
            with self._failing_alone(sequence):
                self._prompts.start(sequence)

    def _prefill_unit(self) -> None:
        """Run prefilling sequences in turn, so that a short one is not stuck behind a long one.

        After the first unit, goes on while the next one ends within `unit_sec`, as far as can be
        told. Each decode step in between then has more answers to advance: short prompts are
        made of many small units, and one a step would leave most rows of the batch empty.
        """
        began, longest = time.perf_counter(), 0.0
        while self._prefilling:
            unit_began = time.perf_counter()
            sequence = self._prefilling[0]
            self._prefilling.rotate(-1)
            assert sequence.work is not None
            with self._failing_alone(sequence):
                self.adapters.use(sequence.request.adapter)
                next(sequence.work, None)
            now = time.perf_counter()
            longest = max(longest, now - unit_began)
            if not self._prefilling:
                return
            expected = max(longest, self._prefill.next_chunk_sec(self._prefilling[0]))
            if now - began + expected > self.limits.unit_sec:
                return

    def _begin_decoding(self, sequence: Sequence) -> None:
        """Let a sequence whose prompt is computed take part in the steps from now on."""
        with self._changed:
            self._prefilling.remove(sequence)
            self._decoding.append(sequence)

    # --- the end of a sequence ---

    def _end_without_answer(self, sequence: Sequence) -> None:
        """End what was asked for scores or a trace: they are with whoever asked."""
        self._remove(sequence)
        sequence.stream.finish(sequence.to_answer("stop"))

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End an answer: keep what was computed for later turns, then hand the answer over."""
        self._remove(sequence)
        answer = sequence.to_answer(reason)
        request = sequence.request
        if request.tracing is None:  # which has kept what it had computed
            self._prompts.keep_prefix(sequence)
        # A score or trace that was cancelled is no answer: its tokens were given, not generated.
        if not (request.score_tokens or request.tracing) and (ids := sequence.ids_of(answer.text)):
            text = request.open_answer + answer.text
            self.answers.remember(request.scope, request.prompt, text, ids)
        sequence.stream.finish(answer)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End one request with an error fit for people; the others go on."""
        self._remove(sequence)
        self._make_room(error)
        sequence.stream.fail(failures.as_told(error))

    def _all(self) -> list[Sequence]:
        with self._changed:
            return [*self._waiting, *self._prefilling, *self._decoding]

    def _remove(self, sequence: Sequence) -> None:
        with self._changed:
            for queue in (self._waiting, self._prefilling, self._decoding):
                if sequence in queue:
                    queue.remove(sequence)
        self._decoder.forget(sequence)
        if sequence.work is not None:
            sequence.work.close()  # lets a picture it was encoding be encoded by another
