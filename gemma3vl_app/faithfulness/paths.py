"""`verify_paths`: one model in every form and on every fast path that this machine has.

The reference is the model in fp32 as transformers computes it. It is let go of before the first
form is loaded, each form before the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from gemma3vl_app import hardware
from gemma3vl_app.engine.failures import as_told
from gemma3vl_app.engine.memory import give_back
from gemma3vl_app.errors import Gemma3VLError, LoadError, VerificationError
from gemma3vl_app.faithfulness.bounds import Bounds
from gemma3vl_app.faithfulness.engine_paths import (
    AT_ONCE,
    BY_TRANSFORMERS,
    NO_KERNELS,
    PATHS,
    PathRuns,
)
from gemma3vl_app.faithfulness.judging import Judge
from gemma3vl_app.faithfulness.path_results import PathResult, PathsVerification, not_here
from gemma3vl_app.faithfulness.prompts import own_prompts
from gemma3vl_app.faithfulness.reader import Reader, compared, load_reference
from gemma3vl_app.faithfulness.record import Record
from gemma3vl_app.faithfulness.two_models import local_source, prompts_for, read_all
from gemma3vl_app.generation import Report
from gemma3vl_app.loading import compiled, compiled_bf16
from gemma3vl_app.loading.loader import LoadedModel, load_model
from gemma3vl_app.planning import LoadPlan, check_weights, plan_for
from gemma3vl_app.prompting.tokenizer import TextTokenizer

FORMS = ("fp32", "w16", "bf16", "int8", "int4", "nf4")  # most exact first
LOADING = "loading"  # the path of a form that is not there
COMPILED_FORMS = ("w16", "int8", "int4")  # that have kernels of our own in float32
COMPILED_FORMS_BF16 = ("bf16", "int8", "int4")  # and in bfloat16


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

    Without `weights` all forms are tried; those that are not made for this machine are told with
    the reason. What fails otherwise, and a form of `weights` that cannot be loaded for whatever
    reason, counts as over the bound, and the others go on. Each form goes through all paths that it
    has. `bounds` replace those of `faithfulness.bounds` for every form. `pictures` and `prompts`
    replace the built-in ones. Raises `LoadError` and `VerificationError` where the reference cannot
    be computed.
    """
    name = local_source(source)
    for each in weights:
        check_weights(each)
        if each == "auto":
            raise VerificationError("Name forms of weights, such as int8; 'auto' is none of them.")
    report = progress or (lambda step: None)
    own = own_prompts(prompts, pictures)
    with Record() as record:
        loaded = load_reference(name, weights="fp32", revision=revision, progress=report)
        reader = Reader(loaded)
        asked = prompts_for(reader, own)
        read_all(reader, asked, record, loaded.name, report)
        reference, tokenizer = compared(name, loaded), reader.tokenizer
        chosen = _chosen(loaded)
        absent = {} if weights else {form: why for form in FORMS if (why := _absent(loaded, form))}
        del loaded, reader
        readings = [(prompt, record[number]) for number, prompt in enumerate(asked)]
        if not any(reading.answer_ids for _, reading in readings):
            raise VerificationError(
                "The reference ends its answer to every prompt at once, so there is nothing to "
                "compare. Ask other questions with prompts."
            )
        results: list[PathResult] = []
        for form in weights or FORMS:
            give_back()  # the model before
            if form in absent:
                results.append(not_here(form, absent[form]))
                continue
            judge = Judge(form, readings, tokenizer, bounds)
            load = partial(_load, form, name, revision, report)
            results += _of_form(form, judge, load, tokenizer)
        give_back()
    return PathsVerification(reference=reference, chosen=chosen, results=tuple(results))


def _chosen(loaded: LoadedModel) -> str:
    """Return the form that loading chooses on this machine by itself."""
    return plan_for(loaded.config, name=loaded.name, machine=hardware.detect()).weights


def _absent(loaded: LoadedModel, form: str) -> str:
    """Return why a form is not made for this machine; "" where it is, whether it fits or not."""
    try:
        plan_for(loaded.config, name=loaded.name, machine=hardware.detect(), weights=form)
    except LoadError as error:
        return str(error)
    return ""


def _of_form(
    weights: str, judge: Judge, load: Callable[..., LoadedModel], tokenizer: TextTokenizer
) -> list[PathResult]:
    """Load one form and return its results, and those without what its plan calls a fast path."""
    try:
        loaded = load()
    except LoadError as error:
        return [judge.failed(LOADING, str(error))]
    plan = loaded.plan
    names = list(PATHS)
    if not _has_kernels(weights, plan.dtype):
        names = [name for name in names if name != NO_KERNELS]
    about = _fast(plan)
    results = _on_paths(loaded, names, judge, tokenizer, about)
    del loaded
    if about:
        give_back()
        without = "fast paths of loading off"
        try:
            loaded = load(fast_paths=False)
        except LoadError as error:
            return [*results, judge.failed(LOADING, str(error), without)]
        names = [name for name in PATHS if name in (BY_TRANSFORMERS, AT_ONCE)]
        results += _on_paths(loaded, names, judge, tokenizer, without)
    return results


def _load(
    weights: str, source: str, revision: str | None, report: Report, *, fast_paths: bool = True
) -> LoadedModel:
    return load_model(
        source, weights=weights, fast_paths=fast_paths, revision=revision, progress=report
    )


def _fast(plan: LoadPlan) -> str:
    """Say which fast paths of loading a plan has."""
    said = [f"output matrix {plan.table}"] if plan.table else []
    said += ["tower in pieces"] if plan.tower_in_pieces else []
    return ", ".join(said + (["kernels for few rows"] if plan.row_kernels else []))


def _has_kernels(weights: str, dtype: str) -> bool:
    """Whether matrices of a form have kernels of ours here, in that arithmetic."""
    if dtype == "bfloat16":
        return weights in COMPILED_FORMS_BF16 and compiled_bf16.is_here()
    return weights in COMPILED_FORMS and compiled.few_rows(torch.bfloat16) is not None


def _on_paths(
    loaded: LoadedModel, names: Sequence[str], judge: Judge, tokenizer: TextTokenizer, about: str
) -> list[PathResult]:
    """Send one loaded model down each path; one that fails does not keep it from the others."""
    results: list[PathResult] = []
    with Record() as own_pass:
        runs = PathRuns(Reader(loaded, tokenizer), judge.readings, own_pass)
        for name in names:
            try:
                run = PATHS[name](runs)
            except (Gemma3VLError, RuntimeError, MemoryError) as error:
                results.append(judge.failed(name, str(as_told(error)), about))
                continue
            kernels = name != NO_KERNELS and compiled.few_rows(torch.bfloat16) is not None
            results += judge.results(name, run, about, dtype=loaded.plan.dtype, kernels=kernels)
    return results
