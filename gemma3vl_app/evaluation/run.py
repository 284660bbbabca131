"""`evaluate`: ask a model each item of a suite, score the answers, and write down what came out."""

from __future__ import annotations

import dataclasses
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gemma3vl_app import __version__
from gemma3vl_app.backends.protocol import Backend
from gemma3vl_app.errors import ConversationError, EvaluationError
from gemma3vl_app.evaluation import harness, lmms_harness, report
from gemma3vl_app.evaluation.data import Data, read_data
from gemma3vl_app.evaluation.items import Item
from gemma3vl_app.evaluation.letters import Letters, read_logprobs
from gemma3vl_app.evaluation.prompts import conversation_of
from gemma3vl_app.evaluation.results import (
    Case,
    Evaluation,
    delete_results,
    scores_of,
    write_results,
)
from gemma3vl_app.evaluation.suites import Suite, find_suite
from gemma3vl_app.folders.asking import Asking, Question
from gemma3vl_app.folders.items import BatchItem
from gemma3vl_app.folders.outputs import Lines, Output
from gemma3vl_app.generation import Greedy, Progress
from gemma3vl_app.lazy_pictures import PictureFile
from gemma3vl_app.messages import Conversation
from gemma3vl_app.pictures import Crops
from gemma3vl_app.stream import Stream

ANSWERS = "answers.jsonl"  # the journal: appended to as answers come
WRITTEN, LIKELIEST = "written answers", "log-probabilities of the letters"
_PACKAGES = ("torch", "transformers", "tokenizers", "pillow", "rapidfuzz", "pycocoevalcap")


def evaluate(
    backend: Backend,
    suite: str | Suite,
    *,
    data: str | Path | Data | None = None,
    config: str | None = None,
    split: str | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    crops: Crops = "auto",
    adapter: str | None = None,
    retry_failed: bool = False,
    restart: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Ask `backend` the items of a suite and return its scores with their intervals.

    `data` is a .jsonl file, a folder of the package `datasets`, the name of a data set on the hub
    (`config` and `split` say which part of it), or what `read_data` returned; without it the suite
    takes its published set. `limit` items are drawn by `seed`, which also makes the intervals.
    Answers are greedy and at most `max_new_tokens` long. Into the folder `out` go the answers as
    they come, `results.json`, `report.html` and files in the forms of lm-eval and lmms-eval. The
    same call goes on where an earlier one ended, and asks again about picture files whose size has
    changed, with `retry_failed` also about items that failed; `restart` forgets what was done. An
    item that cannot be asked counts as wrong and is named in `failed`.
    Raises `EvaluationError` for data that cannot be used, `ConversationError` for a folder that was
    begun with other settings or another model, `EngineError` where the backend is closed.
    """
    began = time.perf_counter()
    suite = find_suite(suite) if isinstance(suite, str) else suite
    if limit is not None and limit < 1:
        raise EvaluationError(f"limit is {limit}; it must be 1 or more.")
    if not isinstance(data, Data):
        data = read_data(suite, data, config=config, split=split, limit=limit)
    items = data.chosen(limit, seed)
    _check(backend, suite, data, items)
    how = _how(backend, suite, data)
    limits = suite.max_new_tokens if max_new_tokens is None else max_new_tokens
    settings = _settings(
        suite, data, backend, answers=how, max_new_tokens=limits, crops=crops, adapter=adapter
    )
    folder = None if out is None else _made_folder(out)
    with _output(folder, settings, restart=restart) as output:
        if folder is not None and restart:
            _delete_written(folder)
        earlier = _done_before(output, items, retry_failed=retry_failed)
        with _question(backend, suite, items, settings) as question:
            _ask_all(question, items, output, earlier, progress)
        answers = {each.file: each for each in output.items()}
    cases = _cases(suite, items, answers, how)
    evaluation = Evaluation(
        suite=suite.name,
        metrics=suite.metrics,
        scores=scores_of(suite.metrics, cases, seed),
        cases=cases,
        folder=folder,
        about={
            "data": _told(data),
            "limit": limit,
            "seed": seed,
            "prompt": suite.prompt,
            "free_prompt": suite.free_prompt,
            "settings": {key: settings[key] for key in _SHOWN_SETTINGS},
            "model": dataclasses.asdict(backend.capabilities.identity),
            "plan": None if backend.plan is None else backend.plan.to_dict(),
            "versions": _versions(),
            "seconds": round(time.perf_counter() - began, 1),
            "answered_earlier": len(earlier),
            "tokens": _tokens(cases, answers),
            "notes": list(data.notes),
        },
    )
    if folder is not None:
        write_results(evaluation, folder)
        report.write_report(evaluation, folder)
        harness.write_harness_files(evaluation, suite, folder)
        lmms_harness.write_lmms_files(evaluation, suite, folder)
    return evaluation


# --- what is asked, and how -----------------------------------------------------------------------

_SHOWN_SETTINGS = ("answers", "sampling", "max_new_tokens", "crops", "adapter")


def _check(backend: Backend, suite: Suite, data: Data, items: Sequence[Item]) -> None:
    """Raise an error for what would go wrong with each item in the same way."""
    if not suite.choices and any(item.options for item in data.items):
        raise EvaluationError(
            f"The data have options, which {suite.name} does not ask for. Read them for a suite of "
            "multiple choice."
        )
    able = backend.capabilities
    if not able.pictures and all(item.pictures for item in items):
        raise ConversationError(
            f"The model {able.model!r} takes no pictures. Choose one that does."
        )


def _how(backend: Backend, suite: Suite, data: Data) -> str:
    """Return how options are chosen from: by their likelihood, where the backend can tell it.

    All data are looked at: a larger limit asks in the same way, and may go on.
    """
    has_options = suite.choices and any(item.options for item in data.items)
    return LIKELIEST if has_options and backend.capabilities.score else WRITTEN


def _weighs(item: Item, how: str) -> bool:
    """Whether an item's letters are weighed, and nothing is written."""
    return bool(item.options) and how == LIKELIEST


def _settings(suite: Suite, data: Data, backend: Backend, **chosen: Any) -> dict[str, Any]:
    """Return what answers depend on: an answer of other settings is another answer."""
    model = dataclasses.asdict(backend.capabilities.identity)
    del model["arithmetic"]  # the same model on another machine may go on
    return {
        "suite": suite.name,
        "prompt": suite.prompt,
        "free_prompt": suite.free_prompt,
        "data": data.sha256,
        "model": model,
        "sampling": "greedy",
        "schema": None,  # the journal of folders wants to know: answers are text
        **chosen,
    }


@contextmanager
def _question(
    backend: Backend, suite: Suite, items: Sequence[Item], settings: Mapping[str, Any]
) -> Iterator[Question]:
    """Make what `folders.asking` asks by an item's id."""
    by_id = {item.id: item for item in items}
    session = secrets.token_hex(8)  # nothing of anybody else's is reused
    adapter = settings["adapter"]
    with Letters(backend, adapter=adapter, session=session) as letters:

        def ask(id: str, conversation: Conversation) -> Stream:
            if _weighs(by_id[id], settings["answers"]):
                return letters.ask(conversation, by_id[id].letters)
            return backend.stream(
                conversation,
                sampling=Greedy(),
                max_new_tokens=settings["max_new_tokens"],
                adapter=adapter,
                session=session,
            )

        yield Question(
            open=lambda id: conversation_of(suite, by_id[id], settings["crops"]),
            ask=ask,
            size=lambda id: _picture_bytes(by_id[id]),
            objection=lambda id: None,
        )


def _ask_all(
    question: Question,
    items: Sequence[Item],
    output: Output,
    earlier: set[str],
    progress: Callable[[Progress], None] | None,
) -> None:
    """Ask what was not asked yet, and write answers as they come."""
    done, failed = len(earlier), sum(output.earlier[id].failed for id in earlier)
    asking = Asking(question, (item.id for item in items if item.id not in earlier))
    with closing(asking.groups()) as groups:
        while True:
            if progress is not None:
                message = f"{failed:,} failed" if failed else ""
                progress(Progress("evaluate", done, len(items), "items", message))
            group = next(groups, None)
            if group is None:
                return
            output.write(group)
            done += len(group)
            failed += sum(answer.failed for answer in group)


# --- what earlier runs did ------------------------------------------------------------------------


def _made_folder(out: str | Path) -> Path:
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(
            f"The folder '{folder.name}' cannot be made ({error.strerror}). Choose another one."
        ) from error
    return folder


def _output(folder: Path | None, settings: Mapping[str, Any], *, restart: bool) -> Output:
    if folder is None:
        return Output()
    path = folder / ANSWERS
    return Lines(path, settings, restart=restart, journal_path=path)


def _delete_written(folder: Path) -> None:
    """Delete results of an earlier run: they are not those of the answers that come now."""
    delete_results(folder)
    report.delete_report(folder)
    harness.delete_harness_files(folder)
    lmms_harness.delete_lmms_files(folder)


def _done_before(output: Output, items: Sequence[Item], *, retry_failed: bool) -> set[str]:
    """Return the items that earlier runs asked, after forgetting what shall be asked again."""
    present = {item.id: item for item in items if item.id in output.earlier}
    outdated = {
        id
        for id, item in present.items()
        if output.earlier[id].size_bytes != _picture_bytes(item)
        or (retry_failed and output.earlier[id].failed)
    }
    output.forget(outdated)
    return set(present) - outdated


def _picture_bytes(item: Item) -> int | None:
    """Return the size of an item's picture files together: other sizes are other pictures.

    None where one is missing, or they are in a data set, whose rows do not change by themselves.
    """
    paths = [each.path for each in item.pictures if isinstance(each, PictureFile)]
    try:
        return sum(path.stat().st_size for path in paths) if paths else None
    except OSError:
        return None


# --- what came of it ------------------------------------------------------------------------------


def _cases(
    suite: Suite, items: Sequence[Item], answers: Mapping[str, BatchItem], how: str
) -> tuple[Case, ...]:
    """Score all items: some metrics look at all of them together."""
    given = [answers[item.id] for item in items]
    texts = [None if answer.failed else answer.text.strip() for answer in given]
    logprobs = [
        read_logprobs(text, item.letters) if text is not None and _weighs(item, how) else {}
        for item, text in zip(items, texts, strict=True)
    ]
    chosen = [
        max(weighed, key=lambda letter: weighed[letter]) if weighed else text
        for weighed, text in zip(logprobs, texts, strict=True)
    ]
    scored = {metric.name: metric.score_all(items, chosen) for metric in suite.metrics}
    return tuple(
        Case(
            item=item,
            text=texts[at] or "",
            error=given[at].error,
            parts={name: parts[at] for name, parts in scored.items()},
            logprobs=logprobs[at],
        )
        for at, item in enumerate(items)
    )


def _told(data: Data) -> dict[str, Any]:
    return {
        "name": data.name,
        "config": data.config,
        "split": data.split,
        "sha256": data.sha256,
        "items": len(data.items),
    }


def _tokens(cases: Sequence[Case], answers: Mapping[str, BatchItem]) -> dict[str, int]:
    """Return the tokens of written answers, and of how many: scored letters tell none."""
    written = [answers[case.item.id] for case in cases if not case.logprobs]
    names = ("prompt_tokens", "image_tokens", "completion_tokens")
    told = {name: sum(getattr(each.usage, name) for each in written) for name in names}
    return {**told, "items": len(written)}


def _versions() -> dict[str, str]:
    found = {"gemma3vl_app": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
