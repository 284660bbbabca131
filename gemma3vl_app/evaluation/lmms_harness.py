"""The same results in the files of lmms-eval, which differ from those of lm-eval, its origin.

`DATE_results.json` and `DATE_samples_TASK.jsonl` have the fields that lmms-eval 0.7.3 writes; what
we do not know is null. Every answer is a "generate_until": where letters were weighed the likeliest
counts as what was written, since lmms-eval asks for letters in writing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gemma3vl_app.evaluation.harness import (
    config_of,
    doc_of,
    error_of,
    hash_of,
    installed,
    model_of,
    score_of,
    sha256_of,
    target_of,
)
from gemma3vl_app.evaluation.intervals import RESAMPLES
from gemma3vl_app.evaluation.items import ALL
from gemma3vl_app.evaluation.results import Case, Evaluation, telling, write_text
from gemma3vl_app.evaluation.suites import Suite

FOLDER = "lmms_eval"
TASKS = {  # what lmms-eval calls a suite that is asked about its published set, if otherwise
    "docvqa": "docvqa_val",
    "textvqa": "textvqa_val",
    "vqav2": "vqav2_val",
    "coco": "coco2017_cap_val",
    "mmmu": "mmmu_val",
}
METRICS = {  # by suite, since not all that we call "accuracy" is MMMU's
    "textvqa": {"vqa_accuracy": "exact_match"},
    "vqav2": {"vqa_accuracy": "exact_match"},
    "chartqa": {"relaxed_accuracy": "relaxed_overall"},
    "ocrbench": {"contains": "ocrbench_accuracy"},
    "coco": {"cider": "coco_CIDEr"},
    "mmmu": {"accuracy": "mmmu_acc"},
}
_NOT_THEIRS = ("unsafe_code", "fewshot_config", "dataset_name")
_UNKNOWN = "N/A"


def write_lmms_files(evaluation: Evaluation, suite: Suite, folder: Path) -> None:
    """Write both files below `folder`, in place of those of an earlier run."""
    inside = folder / FOLDER
    with telling(inside):
        inside.mkdir(exist_ok=True)
    delete_lmms_files(folder)
    date, task = datetime.now(UTC).strftime("%Y%m%d_%H%M%S"), _task(evaluation, suite)
    samples = [_sample(number, case, suite) for number, case in enumerate(evaluation.cases)]
    lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    write_text(inside / f"{date}_samples_{task}.jsonl", "".join(lines))
    hashes = (f"sample_{number}{each['doc_hash']}" for number, each in enumerate(samples))
    told = _results(evaluation, suite, task)
    told |= {"date": date, "task_hashes": {task: sha256_of("".join(hashes))}}
    told |= {**model_of(evaluation.about), "start_time": None, "end_time": None}
    write_text(inside / f"{date}_results.json", json.dumps(told, indent=2, ensure_ascii=False))


def delete_lmms_files(folder: Path) -> None:
    """Delete what `write_lmms_files` wrote of earlier runs."""
    inside = folder / FOLDER
    with telling(inside):
        for old in (*inside.glob("*_results.json"), *inside.glob("*_samples_*.jsonl")):
            old.unlink()


def _task(evaluation: Evaluation, suite: Suite) -> str:
    """Return lmms-eval's name of the task, ours where other data were asked about."""
    data, published = evaluation.about["data"], suite.published
    if published is None or (data["name"], data["split"]) != (published.name, published.split):
        return suite.name
    return TASKS.get(suite.name, suite.name)


def _metric(name: str, suite: Suite) -> str:
    return METRICS.get(suite.name, {}).get(name, name)


def _results(evaluation: Evaluation, suite: Suite, task: str) -> dict[str, Any]:
    about, config = evaluation.about, _config(evaluation, suite, task)
    directions = {_metric(each.name, suite): each.higher_is_better for each in suite.metrics}
    count = {"original": about["data"]["items"], "effective": len(evaluation.cases)}
    return {
        "results": {task: _scores(evaluation, suite, task)},
        "group_subtasks": {task: []},
        "configs": {task: config},
        "versions": {task: config["metadata"]["version"]},
        "n-shot": {task: 0},
        "higher_is_better": {task: directions},
        "n-samples": {task: count},
        "config": _run(about),
        "git_hash": None,
        "git_branch": None,
        "lmms_eval_version": installed("lmms_eval"),
        "usage": {},
        "efficiency": {},
    }


def _scores(evaluation: Evaluation, suite: Suite, task: str) -> dict[str, Any]:
    told: dict[str, Any] = {"alias": task}
    for score in evaluation.scores:
        if score.kind == ALL:
            name = _metric(score.metric, suite)
            told[f"{name},none"] = score.value
            told[f"{name}_stderr,none"] = error_of(evaluation, score.metric)
            told |= {f"{name}_stderr_{sort},none": _UNKNOWN for sort in ("clt", "clustered")}
    return told


def _config(evaluation: Evaluation, suite: Suite, task: str) -> dict[str, Any]:
    config = {k: v for k, v in config_of(evaluation, suite).items() if k not in _NOT_THEIRS}
    metrics = [each | {"metric": _metric(each["metric"], suite)} for each in config["metric_list"]]
    limit = evaluation.about["settings"]["max_new_tokens"]
    return {
        **config,
        "task": task,
        "metric_list": metrics,
        "output_type": "generate_until",
        "generation_kwargs": {
            "max_new_tokens": limit,
            "do_sample": False,
            "temperature": 0.0,
            "until": [],
        },
        "full_docs": False,
        "process_results_use_image": False,
        "doc_to_visual": "pictures",
        "score_key": "score",
        "auto_strip_thinking": False,
    }


def _run(about: Mapping[str, Any]) -> dict[str, Any]:
    seeds = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
    unknown = ("batch_size", "device", "use_cache", "process_docs_parallel", "resolved_cli_args")
    return {
        "model": "gemma3vl",
        "model_args": about["model"]["name"],
        "model_backend": "gemma3vl_app",
        "batch_sizes": [],
        "limit": about["limit"],
        "offset": 0,
        "bootstrap_iters": RESAMPLES,
        "gen_kwargs": "",
        **dict.fromkeys(seeds, about["seed"]),
        **dict.fromkeys(unknown),
    }


def _sample(number: int, case: Case, suite: Suite) -> dict[str, Any]:
    """Return an answer's line; `score` is the first metric, which lmms-eval compares runs by."""
    logprobs = case.logprobs
    answer = max(logprobs, key=lambda each: logprobs[each]) if logprobs else case.text
    return {
        "doc_id": number,
        "target": target_of(case.item),
        "filtered_resps": answer,
        "token_counts": [None],
        "doc_hash": hash_of(doc_of(case.item)),
        "score": score_of(case.parts[suite.metrics[0].name]),
        **{_metric(name, suite): score_of(part) for name, part in case.parts.items()},
        "input": suite.ask(case.item),
    }
