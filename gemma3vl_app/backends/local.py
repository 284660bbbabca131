"""A Gemma 3 model in this process: loading, prompting and engine behind the `Backend` protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import transformers
from PIL import Image

from gemma3vl_app import __version__, catalog, hardware
from gemma3vl_app.backends.drafting import (
    check_speculation,
    guessing,
    load_draft,
    with_draft,
)
from gemma3vl_app.backends.options import checked_logprobs, checked_stop, whole_number
from gemma3vl_app.backends.protocol import Activity, Capabilities, Schema
from gemma3vl_app.engine.disk_cache import DiskSettings
from gemma3vl_app.engine.engine import Engine, EngineLimits
from gemma3vl_app.engine.grammar import Grammars, Matcher
from gemma3vl_app.engine.memory import give_back
from gemma3vl_app.engine.prefix import Scope
from gemma3vl_app.engine.sequence import Request
from gemma3vl_app.engine.traces import Tracing, known_tokens
from gemma3vl_app.errors import ContextLengthError, ConversationError, EngineError
from gemma3vl_app.generation import Answer, Greedy, Preview, Progress, Sampling, Token
from gemma3vl_app.loading.cache import CONVERSATIONS, cache_root
from gemma3vl_app.loading.loader import LoadedModel, load_model
from gemma3vl_app.messages import Conversation, Message
from gemma3vl_app.pictures import Picture
from gemma3vl_app.planning import LoadPlan
from gemma3vl_app.planning.wishes import parse_bytes
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.pixels import squared
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.prompt import PreparedPrompt, beginning, extended
from gemma3vl_app.prompting.template import BLANK_LINE, check_text
from gemma3vl_app.prompting.tokenizer import TextTokenizer
from gemma3vl_app.schemas import as_json_schema
from gemma3vl_app.stream import Stream
from gemma3vl_app.traces import Place, Result, Trace, TracedToken
from gemma3vl_app.wording import describe


def load(
    source: str | Path,
    *,
    weights: str = "auto",
    device_map: str | Mapping[str, str] = "auto",
    max_memory: Mapping[str, str | int] | None = None,
    context_tokens: int | None = None,
    revision: str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    progress: Callable[[Progress], None] | None = None,
    disk_cache: str | int | None = None,
    limits: EngineLimits | None = None,
    fast_paths: bool = True,
    speculation: str = "auto",
    draft: str | Path | None = None,
) -> LocalBackend:
    """Load a model and return the backend that answers with it.

    `source` is a name that the catalog knows ("demo", "4b-it"), a hub id, a checkpoint folder or a
    GGUF file; `revision` a branch, tag or commit of the hub. `weights` is "auto", "bf16", "fp32",
    "w16", "int8", "nf4" or "int4"; `device_map`, `max_memory`, `context_tokens` and `fast_paths`
    are wishes to the planner, see `plan`. `adapters` are peft adapters' folders by name.
    `disk_cache`, a size such as "4GiB", lets a follow-up go on from what was computed even after a
    restart; conversations then lie on the disk as keys and values, see docs/engine.md.
    `speculation` "auto" guesses tokens ahead where that is faster, "off" never does; answers are
    the same. `draft` is a small text model ("270m-it") that guesses better than the text itself
    does. Raises `LoadError` with the next thing to do.
    """
    check_speculation(speculation, draft)
    disk_bytes = None if disk_cache is None else parse_bytes(disk_cache)
    loaded = load_model(
        source,
        weights=weights,
        device_map=device_map,
        max_memory=max_memory,
        context_tokens=context_tokens,
        revision=revision,
        progress=progress,
        fast_paths=fast_paths,
    )
    if context_tokens is not None:
        limits = replace(limits or EngineLimits(), context_tokens=context_tokens)
    if disk_bytes is not None:
        limits = replace(limits or EngineLimits(), disk_budget_bytes=disk_bytes)
    drafting = None
    if draft is not None:
        drafting = load_draft(draft, loaded, weights=weights, progress=progress)
        loaded = replace(loaded, plan=with_draft(loaded.plan, drafting))
    backend = LocalBackend(loaded, limits=limits, speculation=speculation, draft=drafting)
    del drafting
    del loaded  # the backend alone holds the model, and can let go of it
    try:
        for name, folder in (adapters or {}).items():
            backend.add_adapter(name, folder)
    except BaseException:
        backend.close()
        raise
    return backend


class LocalBackend:
    """Answers conversations with a loaded model; see `Backend` for what each method promises."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        limits: EngineLimits | None = None,
        speculation: str = "auto",
        draft: LoadedModel | None = None,
    ) -> None:
        """Start an engine over `loaded` and `draft`, which belong to this backend from now on."""
        self._speculation = speculation
        self._loaded: LoadedModel | None = loaded  # None once closed
        self._plan, self._sampling = loaded.plan, loaded.sampling
        self._tokenizer = TextTokenizer.from_file(loaded.tokenizer_file)
        self._format = PromptFormat.from_config(loaded.config, loaded.preprocessor, self._tokenizer)
        stop_ids = loaded.stop_ids | self._format.stop_ids
        self._grammars = Grammars(self._tokenizer, stop_ids)
        self.engine = Engine(
            loaded.model,
            self._tokenizer,
            self._format,
            stop_ids=stop_ids,
            limits=limits,
            speculation=guessing(speculation, stop_ids | self._tokenizer.control_ids, draft),
            name=loaded.name,
            disk=self._disk_settings(loaded, limits.disk_budget_bytes if limits else 0),
        )
        known = catalog.MODELS.get(loaded.name)
        self._capabilities = Capabilities(
            model=loaded.name,
            title=known.title if known else "",
            answer_tokens=known.answer_tokens if known else catalog.DEFAULT_ANSWER_TOKENS,
            knows=loaded.knows,
            context_tokens=self.engine.context_tokens,
            image_tokens=self._format.image_tokens,
            sampling=loaded.sampling,
            revision=loaded.revision,
            tokenizer_sha256=self._tokenizer.sha256,
            weights=loaded.plan.weights,
            arithmetic=hardware.arithmetic(loaded.plan.dtype, loaded.plan.device_map.values()),
        )

    def _disk_settings(self, loaded: LoadedModel, budget_bytes: int) -> DiskSettings | None:
        """Return where to keep what is computed, None where nothing is to be kept."""
        if not budget_bytes:
            return None
        decides = (
            *(loaded.revision, loaded.fingerprint, loaded.plan.weights, loaded.plan.dtype),
            *(loaded.plan.table, loaded.plan.fast_paths),
            *(loaded.plan.tower_in_pieces, loaded.plan.row_kernels),
            sorted(set(loaded.plan.device_map.values())),
            torch.backends.cpu.get_cpu_capability(),  # a folder may be shared between machines
            *(__version__, torch.__version__, transformers.__version__),  # may compute otherwise
            replace(self._format, stop_ids=frozenset()),
            self._tokenizer.sha256,
        )
        return DiskSettings(
            folder=cache_root() / CONVERSATIONS,
            budget_bytes=budget_bytes,
            identity=repr(decides),
            image_tokens=self._format.image_tokens,
        )

    def on(self, device: str) -> LocalBackend:
        """Return a backend of its own over the same model, moved to `device`; adapters stay behind.

        The model is no longer where it was: this backend can still count tokens, not answer.
        """
        if self._loaded is None:
            raise EngineError(f"{self._capabilities.model} is closed.")
        model: Any = self._loaded.model  # transformers leaves `to` unannotated
        moved = replace(self._loaded, model=model.to(device))
        return LocalBackend(moved, speculation=self._speculation)

    @property
    def capabilities(self) -> Capabilities:
        """What the model is and can do."""
        return self._capabilities

    @property
    def plan(self) -> LoadPlan:
        """How and why the model was placed as it is."""
        return self._plan

    @property
    def activity(self) -> Activity:
        """What the engine is doing now."""
        running, waiting = self.engine.queued
        return Activity(
            *(running, waiting, self.engine.still_sec, self.engine.takes_requests),
            failed=self.engine.failed,
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that `stream(adapter=...)` accepts, in the order they came."""
        return self.engine.adapters.names

    def stream(
        self,
        conversation: Conversation,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 1024,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        schema: Schema | None = None,
        adapter: str | None = None,
        session: str = "",
    ) -> Stream:
        """Start an answer and return it as a stream; see `Backend.stream`."""
        key = self._adapter_key(adapter)
        prompt = self._prepare(conversation, session, key)
        request = Request(
            prompt=prompt,
            sampling=sampling or self._sampling,
            max_new_tokens=whole_number("max_new_tokens", max_new_tokens, 1, None),
            stop=checked_stop(stop),
            logprobs=checked_logprobs(logprobs),
            matcher=self._matcher(schema, prompt),
            adapter=key,
            scope=(key, session),
            caller=session,
            open_answer=_open_answer(conversation),
        )
        return self.engine.submit(request)

    def preview(
        self, conversation: Conversation, *, adapter: str | None = None, session: str = ""
    ) -> Preview:
        """Return what `conversation` would cost, computing nothing."""
        key = self._adapter_key(adapter)
        prompt = self._prepare(conversation, session, key)
        return Preview(
            prompt_tokens=len(prompt),
            cached_tokens=self.engine.covered_tokens((key, session), prompt),
            image_tokens=prompt.image_tokens,
            crops=prompt.crops,
            context_tokens=self.engine.context_tokens,
        )

    def seen(self, picture: Picture) -> tuple[Image.Image, ...]:
        """Return the pixels that reach the tower, see `SeesPictures`; raises where it has none."""
        prompt = self._prepare(Conversation((Message("user", (picture,)),)), "")
        return tuple(squared(image, self._format) for image in prompt.images)

    def score(
        self,
        conversation: Conversation,
        text: str,
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> tuple[Token, ...]:
        """Return the tokens of `text` as the next answer, each with its log-probability."""
        key = self._adapter_key(adapter)
        check_text(text, "The text to score")
        ids = self._tokenizer.encode(text)
        if not ids:
            raise ConversationError("There is no text to score; give at least one character.")
        prompt = extended(self._prepare(conversation, session, key), ids)
        request = Request(
            prompt=prompt,
            sampling=Greedy(),
            logprobs=0,
            adapter=key,
            scope=(key, session),
            caller=session,
            score_tokens=len(ids),
        )
        return self.engine.submit(request).answer.tokens

    def answer_tokens(
        self,
        conversation: Conversation,
        answer: Answer | str,
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> tuple[TracedToken, ...]:
        """Return the tokens of an answer, see `Explains`."""
        key = self._adapter_key(adapter)
        question = self._prepare(conversation, session, key)
        return self._texts(self._answer_ids(question, answer, (key, session)))

    def trace(
        self,
        conversation: Conversation,
        answer: Answer | str,
        asked: Trace[Result],
        *,
        adapter: str | None = None,
        session: str = "",
        progress: Callable[[Progress], None] | None = None,
    ) -> Result:
        """Return how `answer` came about, computed between the steps of others; see `Explains`."""
        key = self._adapter_key(adapter)
        scope = (key, session)
        question = self._prepare(conversation, session, key)
        ids = self._answer_ids(question, answer, scope)
        tracing = Tracing(asked, extended(question, ids), self._texts(ids), places_of(question))
        if len(tracing.prompt) > self.engine.context_tokens:
            raise ContextLengthError(
                f"Conversation and answer take {len(tracing.prompt):,} tokens; the model's context "
                f"holds {self.engine.context_tokens:,}. Explain the beginning of the answer."
            )
        request = Request(
            prompt=beginning(tracing.prompt, known_tokens(tracing)),
            sampling=Greedy(),
            adapter=key,
            scope=scope,
            caller=session,
            tracing=tracing,
        )
        with self.engine.submit(request) as stream:
            for chunk in stream:
                if progress is not None:
                    status = chunk.status
                    said = describe(status)
                    progress(Progress(status.stage, status.done, status.total, "steps", said))
        result: Result = tracing.result
        return result

    def _answer_ids(
        self, question: PreparedPrompt, answer: Answer | str, scope: Scope
    ) -> list[int]:
        """Return the tokens of an answer: those it was written in, where they are known."""
        text = answer if isinstance(answer, str) else answer.text
        check_text(text, "The answer")
        known: Sequence[int] | None = None
        if isinstance(answer, Answer):
            known = self._tokenizer.ids_of([token.id for token in answer.tokens], text)
        known = known or self.engine.answers.recall(scope, question, text, exact=True)
        return list(known or self._tokenizer.encode(text))

    def _texts(self, ids: Sequence[int]) -> tuple[TracedToken, ...]:
        """Return tokens with what each adds to the text; the last one brings what is held back."""
        decoder = self._tokenizer.new_decode_stream()
        texts = [decoder.step(id) for id in ids]
        if held := decoder.finish():
            texts[-1] += held
        return tuple(TracedToken(id, text) for id, text in zip(ids, texts, strict=True))

    def remember(
        self,
        conversation: Conversation,
        answers: Mapping[int, Sequence[int]],
        *,
        adapter: str | None = None,
        session: str = "",
    ) -> None:
        """Take token ids generated earlier for answers; see `Backend.remember`."""
        scope = (self._adapter_key(adapter), session)
        turns = groupby(enumerate(conversation.messages), key=lambda each: each[1].role)
        recorded = iter(
            # Messages in a row are told as one answer, whose tokens nobody has.
            [answers.get(index, ()) for index, _ in turn]
            for role, turn in turns
            if role == "assistant"
        )

        def recall(so_far: PreparedPrompt, text: str) -> tuple[int, ...] | None:
            said = next(recorded)
            ids = self._tokenizer.ids_of(said[0], text) if len(said) == 1 else None
            if ids:
                self.engine.answers.remember(scope, so_far, text, ids)
            return ids or self.engine.answers.recall(scope, so_far, text)

        prepare(conversation, self._tokenizer, self._format, recall=recall)

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Load the LoRA adapter that peft saved in the folder `path`, known as `name` from now on.

        Answers that run go on, between two steps of theirs. Raises `LoadError`.
        """
        adapters = self.engine.adapters
        prepared = adapters.prepare(name, path)
        self.engine.call(partial(adapters.put_in, prepared))

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter and free its memory; answers that it is writing end with an error."""
        self.engine.call(partial(self.engine.adapters.remove, name))

    def close(self, *, finish_sec: float = 0.0) -> None:
        """Stop every answer, after `finish_sec` at most, drop the caches and let go of the model.

        See `Backend.close`.
        """
        if finish_sec > 0:
            self.engine.drain(finish_sec)
        self.engine.close()
        if self._loaded is not None:
            self._loaded = None
            give_back()

    def __enter__(self) -> LocalBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _adapter_key(self, adapter: str | None) -> str | None:
        """Return the key of an adapter by name; raises `ConversationError` for an unknown one."""
        if adapter is None:
            return None
        try:
            return self.engine.adapters.key(adapter)
        except KeyError as error:
            known = ", ".join(self.adapters)
            raise ConversationError(
                f"There is no adapter {adapter!r}; "
                f"{f'choose one of: {known}.' if known else 'this model has none loaded.'}"
            ) from error

    def _prepare(
        self, conversation: Conversation, session: str, adapter: str | None = None
    ) -> PreparedPrompt:
        """Return a conversation's prompt; `adapter` is the key of the one that answered in it."""
        open_answer = _open_answer(conversation)

        def recall(so_far: PreparedPrompt, text: str) -> tuple[int, ...] | None:
            exact = bool(open_answer) and text == open_answer
            return self.engine.answers.recall((adapter, session), so_far, text, exact=exact)

        return prepare(conversation, self._tokenizer, self._format, recall=recall)

    def _matcher(self, schema: Schema | None, prompt: PreparedPrompt) -> Matcher | None:
        if schema is None:
            return None
        matcher = self._grammars.matcher(as_json_schema(schema))
        matcher.begin_with(prompt.ids[prompt.answer_start :].tolist())
        return matcher


def places_of(prompt: PreparedPrompt) -> tuple[Place, ...]:
    """Return where each picture and crop of a prompt stands, and which picture it is of."""
    numbers = [number for number, boxes in enumerate(prompt.crops) for _ in range(1 + len(boxes))]
    return tuple(
        Place(number, image.box, image.start, image.stop)
        for number, image in zip(numbers, prompt.images, strict=True)
    )


def _open_answer(conversation: Conversation) -> str:
    """Return the text of the answer that the conversation ends in, as the template joins it."""
    texts: list[str] = []
    for message in reversed(conversation.messages):
        if message.role != "assistant":
            break
        texts.append(message.text)
    return BLANK_LINE.join(reversed(texts))
