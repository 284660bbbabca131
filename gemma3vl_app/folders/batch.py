"""`batch`: ask one thing about every picture of a folder and keep the answers."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from gemma3vl_app.backends.protocol import Backend, Schema
from gemma3vl_app.errors import ConversationError
from gemma3vl_app.folders.asking import Asking, Check, Question
from gemma3vl_app.folders.find import FoundPictures, PathOrPaths, find_pictures
from gemma3vl_app.folders.items import BatchReport
from gemma3vl_app.folders.outputs import Output, check_earlier, open_output
from gemma3vl_app.generation import Greedy, Progress, Sampling
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Crops, Picture
from gemma3vl_app.schemas import as_json_schema, closed


def batch(
    backend: Backend,
    pictures: PathOrPaths,
    *,
    prompt: str,
    schema: Schema | None = None,
    out: str | Path | None = None,
    recursive: bool = False,
    system: str | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int | None = None,
    adapter: str | None = None,
    crops: Crops = "auto",
    retry_failed: bool = False,
    restart: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> BatchReport:
    """Ask `prompt` about each picture of a folder, or of several files and folders.

    `out` is a file that ends in .jsonl or .csv, or "sidecars" for a small file beside each picture;
    without it the answers are only returned. The same call goes on where an earlier run ended, and
    asks again about pictures whose size in bytes has changed, with `retry_failed` also about those
    that failed; `restart` forgets all that was done. `sampling` is greedy unless given,
    `max_new_tokens` what the model says is sensible. A picture that fails is an item with its
    reason. Raises `PictureError` where there are no pictures, `ConversationError` for a bad request
    or an output that cannot be used, `EngineError` where the backend is closed.
    """
    began = time.perf_counter()
    _check_prompt(prompt)
    _check(backend, schema)
    found = find_pictures(pictures, recursive=recursive)
    json_schema = None if schema is None else closed(as_json_schema(schema))
    rule = sampling or Greedy()
    limit = backend.capabilities.answer_tokens if max_new_tokens is None else max_new_tokens
    settings = _settings(
        model=_model(backend),
        prompt=prompt,
        system=system,
        schema=json_schema,
        sampling=rule,
        max_new_tokens=limit,
        crops=crops,
        adapter=adapter,
    )
    session = secrets.token_hex(8)  # nothing of anybody else's is reused
    with open_output(out, found, settings, restart=restart) as output:
        earlier = _done_before(output, found, retry_failed=retry_failed)
        question = Question(
            open=lambda name: Conversation(system=system).user(
                Picture.open(found.path(name), crops=crops), prompt
            ),
            ask=lambda _, conversation: backend.stream(
                conversation,
                sampling=rule,
                max_new_tokens=limit,
                schema=json_schema,
                adapter=adapter,
                session=session,
            ),
            size=lambda name: _size_bytes(found.path(name)),
            objection=output.objection,
            with_schema=schema is not None,
            check=_check_of(schema),
        )
        _ask_all(question, found, output, earlier, progress)
        items = {item.file: item for item in output.items()}
    return BatchReport(
        items=tuple(items[name] for name in found.names),
        out=output.path,
        skipped=found.skipped,
        earlier=len(earlier),
        seconds=time.perf_counter() - began,
    )


def check_batch(
    pictures: PathOrPaths,
    *,
    prompt: str,
    out: str | Path,
    recursive: bool = False,
    restart: bool = False,
    **known: Any,
) -> None:
    """Raise what `batch` would raise, as far as that shows before a model is loaded.

    `known` are other arguments of `batch` that answers depend on, without those that are left to
    the model; `model` may have a part of its identity.
    """
    _check_prompt(prompt)
    found = find_pictures(pictures, recursive=recursive)
    check_earlier(out, found, _settings(prompt=prompt, **known), restart=restart)


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise ConversationError("The prompt is empty. Say what to ask about each picture.")


def _check(backend: Backend, schema: Schema | None) -> None:
    """Raise `ConversationError` for what would fail for each picture in the same way."""
    able = backend.capabilities
    if not able.pictures:
        raise ConversationError(
            f"The model {able.model!r} takes no pictures. Choose one that does."
        )
    if schema is not None and not able.schema:
        raise ConversationError(
            f"The model {able.model!r} cannot be held to a schema here. Ask without one."
        )


def _model(backend: Backend) -> dict[str, str]:
    """Return which model answers, but not on which machine: the same one elsewhere may go on."""
    model = dataclasses.asdict(backend.capabilities.identity)
    del model["arithmetic"]
    return model


def _settings(**chosen: Any) -> dict[str, Any]:
    """Return what answers depend on, as JSON gives it back."""
    if rule := chosen.get("sampling"):
        chosen["sampling"] = {"kind": type(rule).__name__.lower(), **dataclasses.asdict(rule)}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(chosen))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConversationError("The schema is not valid JSON; give a JSON schema.") from error
    return plain


def _check_of(schema: Schema | None) -> Check | None:
    """Return how a pydantic model checks data: more than a schema can say."""
    validate: Check | None = getattr(schema, "model_validate", None)
    return None if isinstance(schema, Mapping) else validate


def _size_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _done_before(output: Output, found: FoundPictures, *, retry_failed: bool) -> set[str]:
    """Return the pictures that earlier runs did, after forgetting what shall be asked again."""
    present = [name for name in found.names if name in output.earlier]
    outdated = {
        name
        for name in present
        if output.earlier[name].size_bytes != _size_bytes(found.path(name))
        or (retry_failed and output.earlier[name].failed)
    }
    output.forget(outdated)
    return set(present) - outdated


def _ask_all(
    question: Question,
    found: FoundPictures,
    output: Output,
    earlier: set[str],
    progress: Callable[[Progress], None] | None,
) -> None:
    """Ask about what is not done, and write outcomes as they come."""
    total, done = len(found.names), len(earlier)
    failed = sum(output.earlier[name].failed for name in earlier)
    asking = Asking(question, (name for name in found.names if name not in earlier))
    with closing(asking.groups()) as groups:
        while True:
            if progress is not None:
                message = f"{failed:,} failed" if failed else ""
                progress(Progress("batch", done, total, "pictures", message))
            group = next(groups, None)
            if group is None:
                return
            output.write(group)
            done += len(group)
            failed += sum(item.failed for item in group)
