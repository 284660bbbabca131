"""`load_model`: from a name or a folder to a checked model in memory.

Decides the arithmetic, builds the class that config.json names, and proves with one forward pass
that it computes. Hands out files and configs beside the model; knows nothing of prompts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
)
from transformers.utils import logging as transformers_logging

from gemma3vl_app import catalog, hardware
from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress, Sampling
from gemma3vl_app.loading.base_270m import Report, base_270m_folder
from gemma3vl_app.loading.checkpoint import Checkpoint, open_checkpoint, read_tensors
from gemma3vl_app.loading.demo import open_demo
from gemma3vl_app.planning import LoadPlan

Model = Gemma3ForConditionalGeneration | Gemma3ForCausalLM

# By name, never by an Auto class: the text class on a vision checkpoint would give random weights.
ARCHITECTURES: dict[str, tuple[type[Any], type[Any]]] = {
    "Gemma3ForConditionalGeneration": (Gemma3ForConditionalGeneration, Gemma3Config),
    "Gemma3ForCausalLM": (Gemma3ForCausalLM, Gemma3TextConfig),
}
WEIGHTS = {"bf16": "bfloat16", "fp32": "float32"}
SHORT = {dtype: weights for weights, dtype in WEIGHTS.items()}
SELF_TEST_IDS = (2, 105, 107, 106)  # <bos>, <start_of_turn>, a line break, <end_of_turn>
# What transformers raises on a config.json that makes no sense: it has no one error for that
NONSENSE = (
    StrictDataclassError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
NAMED_KEYS = 3  # how many keys an error message names


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready for inference, with everything its checkpoint says.

    `config` and `preprocessor` are the JSON files as published, sparse where they are sparse;
    `model.config` has every value. `preprocessor` is None for text-only models and where the
    folder has none. `sampling` and `stop_ids` are the checkpoint's own; `knows` is for people.
    """

    model: Model
    config: dict[str, Any]
    preprocessor: dict[str, Any] | None
    tokenizer_file: Path
    sampling: Sampling
    stop_ids: frozenset[int]
    name: str
    knows: str
    plan: LoadPlan


def load_model(
    source: str | Path,
    *,
    weights: str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> LoadedModel:
    """Load a model by name ("demo", "270m-pt") or from a checkpoint folder.

    `weights` is "bf16", "fp32", or "auto": what this machine computes well in. `progress` hears of
    the stages. Raises `LoadError` with what is wrong and what to do.
    """
    check_weights(weights)
    report = progress or (lambda step: None)
    # 1) What is on disk
    checkpoint, tensors, knows = _open(source, progress)
    report(Progress("load", 0, 2, "steps", f"Loading {checkpoint.name}"))
    # 2) Whether it is whole, and whether it fits, before anything large is allocated
    skeleton = build_skeleton(checkpoint)
    _check_tensors(skeleton, tensors, checkpoint.name)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    plan = _plan(weights, parameters, hardware.detect(), checkpoint.name)
    # 3) The model, and a proof that it computes
    model = _build(skeleton, tensors, plan, checkpoint.name)
    report(Progress("load", 1, 2, "steps", "Testing the model"))
    self_test(model, checkpoint.name, plan)
    report(Progress("load", 2, 2, "steps", f"{checkpoint.name} is ready"))
    return LoadedModel(
        model=model,
        config=checkpoint.config,
        preprocessor=checkpoint.preprocessor if hasattr(skeleton.config, "vision_config") else None,
        tokenizer_file=checkpoint.tokenizer_file,
        sampling=checkpoint.sampling,
        stop_ids=checkpoint.stop_ids,
        name=checkpoint.name,
        knows=knows,
        plan=plan,
    )


def check_weights(weights: str) -> None:
    """Raise `LoadError` unless `weights` is a kind that can be loaded."""
    if weights in ("fp16", "float16", "half"):
        raise LoadError(
            "weights='fp16' is refused: Gemma 3's activations overflow float16, and answers come "
            "out empty. Use 'auto', 'bf16' or 'fp32'."
        )
    if weights != "auto" and weights not in WEIGHTS:
        known = ", ".join(repr(kind) for kind in ("auto", *WEIGHTS))
        raise LoadError(f"weights={weights!r} is not known. Choose one of {known}.")


def build_skeleton(checkpoint: Checkpoint) -> Model:
    """Return the model that config.json names, with shapes but no values (on the meta device)."""
    named = checkpoint.config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    if architecture not in ARCHITECTURES:
        known = " and ".join(ARCHITECTURES)
        raise LoadError(f"{checkpoint.name!r} is a {architecture!r}; only {known} can be loaded.")
    if "quantization_config" in checkpoint.config:
        raise LoadError(
            f"{checkpoint.name!r} is a quantised checkpoint; these cannot be loaded yet. "
            "Use the original bf16 checkpoint."
        )
    model_class, config_class = ARCHITECTURES[architecture]
    try:
        config = config_class.from_dict(checkpoint.config)
        with torch.device("meta"):
            skeleton: Model = model_class(config)
    except NONSENSE as error:
        raise LoadError(
            f"config.json of {checkpoint.name!r} does not describe a {architecture}. "
            "Copy it again from the original model."
        ) from error
    return skeleton


def self_test(model: Model, name: str, plan: LoadPlan) -> None:
    """Run four tokens through `model`; raises `LoadError` unless it computes usable numbers."""
    ids = torch.tensor([SELF_TEST_IDS], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
    pad = model.config.get_text_config().pad_token_id
    if not torch.isfinite(logits).all():
        problem = "not-a-number values"
    elif (logits.argmax(-1) == pad).all():
        problem = "nothing but padding"
    else:
        return
    advice = (
        "Load it with weights='fp32'." if plan.weights != "fp32" else "Its weights are damaged."
    )
    raise LoadError(
        f"{name!r} computes {problem} in {plan.dtype} on {plan.device_map['']}. {advice}"
    )


def _open(
    source: str | Path, progress: Report | None
) -> tuple[Checkpoint, dict[str, torch.Tensor], str]:
    """Return the checkpoint, its tensors under in-memory names, and what the model knows."""
    if source == catalog.DEMO.name:
        return *open_demo(progress), catalog.DEMO.knows
    if source == catalog.BASE_270M.name:
        checkpoint = open_checkpoint(base_270m_folder(progress), catalog.BASE_270M.name)
        return checkpoint, read_tensors(checkpoint), catalog.BASE_270M.knows
    catalog.check_source(source)
    checkpoint = open_checkpoint(Path(source).expanduser())
    pictures = "takes pictures" if "vision_config" in checkpoint.config else "takes no pictures"
    knows = f"A Gemma 3 checkpoint from the folder {checkpoint.name!r}; it {pictures}."
    return checkpoint, read_tensors(checkpoint), knows


def _check_tensors(skeleton: Model, tensors: dict[str, torch.Tensor], name: str) -> None:
    """Raise `LoadError` by name for keys that are missing, unexpected or of another shape."""
    expected = {key: p.shape for key, p in skeleton.named_parameters() if key != "lm_head.weight"}
    both = expected.keys() & tensors.keys()
    for problem, keys in (
        ("lacks", expected.keys() - tensors.keys()),
        ("holds unknown", tensors.keys() - expected.keys()),
        ("does not match its config.json in", {k for k in both if expected[k] != tensors[k].shape}),
    ):
        if keys:
            first = ", ".join(sorted(keys)[:NAMED_KEYS])
            more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
            raise LoadError(
                f"{name!r} {problem} weights: {first}{more}. "
                f"The files do not belong to the {type(skeleton).__name__} of its config.json."
            )


def _plan(weights: str, parameters: int, machine: hardware.Machine, name: str) -> LoadPlan:
    """Place the model on the best device; raises `LoadError` where its weights cannot fit."""
    device = hardware.default_device(machine)
    if weights == "auto":
        dtype, reason = hardware.choose_dtype(device, machine)
    else:
        dtype, reason = WEIGHTS[weights], f"{WEIGHTS[weights]}: you asked for weights={weights!r}."
    needed = parameters * getattr(torch, dtype).itemsize
    available = hardware.available_memory_bytes(device, machine)
    if needed > available:
        raise LoadError(
            f"{name!r} needs {needed / 2**30:.1f} GiB for its weights in {dtype}, but {device} has "
            f"{available / 2**30:.1f} GiB free. Choose a smaller model or a larger "
            "machine."
        )
    return LoadPlan(
        dtype=dtype,
        weights=SHORT[dtype],
        device_map={"": device},
        bytes_by_device={device: needed},
        reasons=(reason,),
    )


def _build(skeleton: Model, tensors: dict[str, torch.Tensor], plan: LoadPlan, name: str) -> Model:
    """Put the tensors into the model, in the plan's dtype and on its device."""
    with _no_progress_bar():
        model_class: type[Any] = type(skeleton)
        model, info = model_class.from_pretrained(
            None,
            config=skeleton.config,
            state_dict=tensors,
            dtype=getattr(torch, plan.dtype),
            output_loading_info=True,
        )
    # `_check_tensors` found every name; this guards against a change of names inside transformers.
    if wrong := [key for keys in info.values() for key in keys]:
        raise LoadError(
            f"{name!r} was not loaded in full: {wrong[0]}. Report this with its config.json."
        )
    built: Model = model.to(plan.device_map[""]).eval().requires_grad_(False)
    return built


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers' progress bar off the terminal: progress has its own channel."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
