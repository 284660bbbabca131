"""The same results in the files of lm-eval, so that whatever reads those reads ours.

`results_DATE.json` and `samples_SUITE_DATE.jsonl` have the fields that lm-eval 0.4.13 writes; what
we do not know is null. Written answers are a "generate_until"; where letters were weighed it is a
"multiple_choice", the questions without options among them too.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gemma3vl_app.evaluation.intervals import RESAMPLES, standard_error
from gemma3vl_app.evaluation.items import ALL, LETTERS, Item
from gemma3vl_app.evaluation.metrics.metric import Part
from gemma3vl_app.evaluation.results import Case, Evaluation, telling, write_text
from gemma3vl_app.evaluation.suites import Suite

FOLDER = "lm_eval"
SUITE_VERSION = 1.0  # of prompts and metrics: raised when scores before and after differ
_FILTER = "none"
_OPTIONS = (
    f"{{% for option in options %}}{{{{ '{LETTERS}'[loop.index0] }}}}. {{{{ option }}}}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)


def write_harness_files(evaluation: Evaluation, suite: Suite, folder: Path) -> None:
    """Write both files below `folder`, in place of those of an earlier run."""
    inside = folder / FOLDER
    with telling(inside):
        inside.mkdir(exist_ok=True)
    delete_harness_files(folder)
    date = datetime.now(UTC).replace(tzinfo=None).isoformat().replace(":", "-")
    samples = [_sample(number, case, suite) for number, case in enumerate(evaluation.cases)]
    lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    write_text(inside / f"samples_{suite.name}_{date}.jsonl", "".join(lines))
    hashes = "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
    told = {**_results(evaluation, suite), "task_hashes": {suite.name: sha256_of(hashes)}}
    told |= model_of(evaluation.about)
    write_text(inside / f"results_{date}.json", json.dumps(told, indent=2, ensure_ascii=False))


def delete_harness_files(folder: Path) -> None:
    """Delete what `write_harness_files` wrote of earlier runs."""
    inside = folder / FOLDER
    with telling(inside):
        for old in (*inside.glob("results_*.json"), *inside.glob("samples_*.jsonl")):
            old.unlink()


def _results(evaluation: Evaluation, suite: Suite) -> dict[str, Any]:
    name, about = suite.name, evaluation.about
    directions = {metric.name: metric.higher_is_better for metric in suite.metrics}
    count = {"original": about["data"]["items"], "effective": len(evaluation.cases)}
    return {
        "results": {name: _scores(evaluation)},
        "group_subtasks": {},
        "configs": {name: config_of(evaluation, suite)},
        "versions": {name: SUITE_VERSION},
        "n-shot": {name: 0},
        "higher_is_better": {name: directions},
        "n-samples": {name: count},
        "config": {
            "model": "gemma3vl",
            "model_args": about["model"],
            "batch_size": None,
            "batch_sizes": [],
            "device": None,
            "use_cache": None,
            "limit": about["limit"],
            "bootstrap_iters": RESAMPLES,
            "gen_kwargs": _generation(about),
            **dict.fromkeys(
                ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed"), about["seed"]
            ),
        },
        "git_hash": None,
        "date": time.time(),
        "pretty_env_info": json.dumps(about["versions"]),
        "transformers_version": about["versions"].get("transformers"),
        "lm_eval_version": installed("lm_eval"),
        "upper_git_hash": None,
    }


def _scores(evaluation: Evaluation) -> dict[str, Any]:
    name = evaluation.suite
    told: dict[str, Any] = {"name": name, "alias": name, "sample_len": len(evaluation.cases)}
    for score in evaluation.scores:
        if score.kind == ALL:
            told[f"{score.metric},{_FILTER}"] = score.value
            told[f"{score.metric}_stderr,{_FILTER}"] = error_of(evaluation, score.metric)
    return told


def error_of(evaluation: Evaluation, metric: str) -> float:
    """Return the standard error of a metric over all items that it is about."""
    parts = [case.parts[metric] for case in evaluation.cases]
    counted = [part for part in parts if part.counts]
    return standard_error(counted, evaluation.about["seed"])


def config_of(evaluation: Evaluation, suite: Suite) -> dict[str, Any]:
    """Return a suite as lm-eval's configuration of a task."""
    about, weighed = evaluation.about, any(case.logprobs for case in evaluation.cases)
    return {
        "task": suite.name,
        "dataset_path": about["data"]["name"],
        "dataset_name": about["data"]["config"],
        "dataset_kwargs": {},
        "test_split": about["data"]["split"],
        "doc_to_text": _template(suite),
        "doc_to_target": "answers",
        "unsafe_code": False,
        "description": suite.about,
        "target_delimiter": " ",
        "fewshot_delimiter": "\n\n",
        "fewshot_config": None,
        "num_fewshot": 0,
        "metric_list": [
            {
                "metric": metric.name,
                "aggregation": "weighted_mean" if metric.weighted else "mean",
                "higher_is_better": metric.higher_is_better,
            }
            for metric in suite.metrics
        ],
        "output_type": "multiple_choice" if weighed else "generate_until",
        "generation_kwargs": _generation(about),
        "repeats": 1,
        "should_decontaminate": False,
        "metadata": {"version": SUITE_VERSION},
    }


def _template(suite: Suite) -> str:
    """Return what a suite asks as lm-eval's template (Jinja) over the samples' `doc`."""
    asked, free = (
        text.replace("{question}", "{{question}}").replace("{options}", _OPTIONS)
        for text in (suite.prompt, suite.free_prompt)
    )
    return f"{{% if options %}}{asked}{{% else %}}{free}{{% endif %}}" if free else asked


def _generation(about: Mapping[str, Any]) -> dict[str, Any]:
    limit = about["settings"]["max_new_tokens"]
    return {"max_gen_toks": limit, "do_sample": False, "temperature": 0.0, "until": []}


def model_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what harnesses tell about a model beside `config`."""
    name = about["model"]["name"]
    return {
        "model_source": "gemma3vl",
        "model_name": name,
        "model_name_sanitized": name.replace("/", "__"),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str(about["seconds"]),
    }


def _sample(number: int, case: Case, suite: Suite) -> dict[str, Any]:
    prompt, doc, target = suite.ask(case.item), doc_of(case.item), target_of(case.item)
    calls, resps = zip(*_calls(case), strict=True)
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {
            f"gen_args_{at}": {"arg_0": prompt, "arg_1": call} for at, call in enumerate(calls)
        },
        "resps": [[resp] for resp in resps],
        "filtered_resps": list(resps),
        "filter": _FILTER,
        "metrics": [metric.name for metric in suite.metrics],
        "doc_hash": hash_of(doc),
        "prompt_hash": sha256_of(prompt),
        "target_hash": sha256_of(target),
        **{name: score_of(part) for name, part in case.parts.items()},
    }


def doc_of(item: Item) -> dict[str, Any]:
    """Return an item as the row that a harness would have read."""
    return {
        "id": item.id,
        "question": item.question,
        "answers": list(item.answers),
        "options": list(item.options),
        "kinds": list(item.kinds),
    }


def target_of(item: Item) -> str:
    """Return what is right, as a harness writes it."""
    return item.answers[0] if len(item.answers) == 1 else str(list(item.answers))


def hash_of(doc: Mapping[str, Any]) -> str:
    """Return a row's hash."""
    return sha256_of(json.dumps(doc, indent=2, ensure_ascii=False))


def score_of(part: Part) -> float | None:
    """Return a sample's metric; None where the metric is not about it."""
    return part.score if part.counts else None


def _calls(case: Case) -> Iterator[tuple[Any, Any]]:
    """Yield what the model was asked besides the prompt, with what it gave back."""
    logprobs = case.logprobs
    if not logprobs:
        yield {"do_sample": False, "temperature": 0.0, "until": []}, case.text
        return
    likeliest = max(logprobs, key=lambda letter: logprobs[letter])
    for letter, logprob in logprobs.items():
        yield letter, [str(logprob), str(letter == likeliest)]


def sha256_of(text: str) -> str:
    """Return the hash of a text in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def installed(name: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
