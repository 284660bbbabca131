"""`verify_paths`: one model in every form and on every fast path that this machine has.

The reference is the model in fp32 as transformers computes it. It is let go of before the first
form is loaded, each form before the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from gemma3vl_app import hardware
from gemma3vl_app.engine.memory import give_back
from gemma3vl_app.errors import LoadError, VerificationError
from gemma3vl_app.faithfulness.bounds import FORM_BOUNDS, Bounds
from gemma3vl_app.faithfulness.engine_paths import (
    AT_ONCE,
    NO_KERNELS,
    OF_EVERY_FORM,
    PATHS,
    PathRuns,
)
from gemma3vl_app.faithfulness.measuring import Place, Rows, agreement
from gemma3vl_app.faithfulness.path_results import PathResult, PathsVerification
from gemma3vl_app.faithfulness.prompts import Prompt, own_prompts
from gemma3vl_app.faithfulness.reader import Reader, compared, load_reference
from gemma3vl_app.faithfulness.record import Record
from gemma3vl_app.faithfulness.results import Agreement, joined
from gemma3vl_app.faithfulness.verifying import features_error, here, prompts_for, read_all
from gemma3vl_app.generation import Progress
from gemma3vl_app.loading import compiled
from gemma3vl_app.loading.loader import LoadedModel, load_model
from gemma3vl_app.planning import check_weights, plan_for
from gemma3vl_app.prompting.tokenizer import TextTokenizer

FORMS = ("fp32", "w16", "bf16", "int8", "int4", "nf4")  # most exact first
COMPILED_FORMS = ("w16", "int8", "int4")  # that have kernels of our own in float32

Report = Callable[[Progress], None]


def verify_paths(
    source: str | Path,
    *,
    weights: Sequence[str] = (),
    bounds: Bounds | None = None,
    pictures: str | Path | None = None,
    prompts: str | Path | None = None,
    revision: str | None = None,
    progress: Report | None = None,
) -> PathsVerification:
    """Compare a model in each form of `weights`, and on each path, with fp32 by transformers.

    Without `weights` all forms are tried; those that this machine cannot run are told with the
    reason. fp32, and the form that loading would choose here, go through all paths, others through
    four of them. `bounds` replace those of `FORM_BOUNDS` for every form. `pictures` and `prompts`
    replace the built-in ones. Raises `LoadError` and `VerificationError`.
    """
    name = here(source)
    for each in weights:
        check_weights(each)
        if each == "auto":
            raise VerificationError("Name forms of weights, such as int8; 'auto' is one of them.")
    report = progress or (lambda step: None)
    own = own_prompts(prompts, pictures)
    with Record() as record:
        loaded = load_reference(name, weights="fp32", revision=revision, progress=report)
        reader = Reader(loaded)
        asked = prompts_for(reader, own)
        read_all(reader, asked, record, loaded.name, report)
        reference, tokenizer = compared(name, loaded), reader.tokenizer
        chosen = _chosen(loaded)
        del loaded, reader
        results: list[PathResult] = []
        for form in weights or FORMS:
            give_back()  # the model before
            results += _of_form(
                *(form, name, revision, record, asked, tokenizer),
                chosen=chosen,
                bounds=bounds,
                report=report,
            )
        give_back()
    return PathsVerification(reference=reference, chosen=chosen, results=tuple(results))


def _chosen(loaded: LoadedModel) -> str:
    """Return the form that loading chooses on this machine by itself."""
    return plan_for(loaded.config, name=loaded.name, machine=hardware.detect()).weights


def _of_form(
    weights: str,
    source: str,
    revision: str | None,
    record: Record,
    prompts: Sequence[Prompt],
    tokenizer: TextTokenizer,
    *,
    chosen: str,
    bounds: Bounds | None,
    report: Report,
) -> list[PathResult]:
    """Load one form and return its results, and those without what its plan calls a fast path."""
    everything = weights in ("fp32", chosen)
    judge = _Judge(weights, record, prompts, bounds)
    try:
        loaded = _load(weights, source, revision, report)
    except LoadError as error:
        return [
            PathResult(
                weights=weights, path="loading", crops="off", agreement=None, note=str(error)
            )
        ]
    plan = loaded.plan
    names = [name for name in PATHS if everything or name in OF_EVERY_FORM]
    if weights not in COMPILED_FORMS or plan.dtype != "float32" or not _has_kernels():
        names.remove(NO_KERNELS)
    results = _on_paths(
        loaded, names, judge, record, tokenizer, _fast(plan.table, plan.tower_in_pieces)
    )
    del loaded
    if plan.table or plan.tower_in_pieces:
        give_back()
        loaded = _load(weights, source, revision, report, fast_paths=False)
        note = "fast paths of loading off"
        results += _on_paths(loaded, [AT_ONCE], judge, record, tokenizer, note)
    return results


def _load(
    weights: str, source: str, revision: str | None, report: Report, *, fast_paths: bool = True
) -> LoadedModel:
    return load_model(
        source, weights=weights, fast_paths=fast_paths, revision=revision, progress=report
    )


def _fast(table: str, in_pieces: bool) -> str:
    """Say which fast paths of loading a plan has."""
    said = [f"output matrix {table}"] if table else []
    return ", ".join(said + (["tower in pieces"] if in_pieces else []))


def _has_kernels() -> bool:
    return compiled.few_rows(torch.bfloat16) is not None


def _on_paths(
    loaded: LoadedModel,
    names: Sequence[str],
    judge: _Judge,
    record: Record,
    tokenizer: TextTokenizer,
    about: str,
) -> list[PathResult]:
    """Send one loaded model down each path."""
    reader = Reader(loaded, tokenizer)
    runs = PathRuns(reader, [record[number] for number in range(len(record))])
    if not runs.readings:
        raise VerificationError(
            "The reference ends its answer to every prompt at once, so there is nothing to compare."
            " Ask other questions with prompts."
        )
    results: list[PathResult] = []
    for name in names:
        rows, note = PATHS[name](runs)
        told = "; ".join(each for each in (about, note) if each)
        results += judge.results(name, rows, runs, reader, told)
    return results


class _Judge:
    """Makes results of what was found: one a crop mode, against the bounds of a form."""

    def __init__(
        self, weights: str, record: Record, prompts: Sequence[Prompt], bounds: Bounds | None
    ) -> None:
        self._weights = weights
        self._bounds = bounds if bounds is not None and bounds.are_given else FORM_BOUNDS[weights]
        numbered = ((prompt, record[number]) for number, prompt in enumerate(prompts))
        self._prompts = [prompt for prompt, reading in numbered if reading.answer_ids]

    def results(
        self, path: str, rows: Sequence[Rows], runs: PathRuns, reader: Reader, note: str
    ) -> Iterator[PathResult]:
        """Yield a result for each crop mode that the prompts have."""
        found = list(zip(self._prompts, runs.readings, rows, strict=True))
        for crops in ("off", "on"):
            some = [each for each in found if each[0].crops == crops]
            if not some:
                continue
            agreements: list[Agreement] = []
            for prompt, reading, each in some:
                start = len(reading.prompt)
                positions = list(range(start - 1, start - 1 + len(each.kl)))
                place = Place(prompt.name, positions, reading.ids, start)
                agreements.append(agreement(each, place, reader.tokenizer))
            total = joined(agreements)
            keys = {image.key: reading for _, reading, _ in some for image in reading.prompt.images}
            yield PathResult(
                weights=self._weights,
                path=path,
                crops=crops,
                agreement=total,
                features_error=features_error(
                    [reading.features[key] for key, reading in keys.items()],
                    [runs.features[key].float().cpu() for key in keys],
                ),
                exceeded=self._bounds.exceeded(total),
                bounds=self._bounds.why,
                note=note,
            )
