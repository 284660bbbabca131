"""`load_model`: from a name, a folder or a file to a checked model in memory.

Opens the source, lets the planner decide, builds the class that config.json names, and proves with
one forward pass that it computes. Hands out files and configs beside the model; knows nothing of
prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from gemma3vl_app import catalog, hardware
from gemma3vl_app.errors import LoadError
from gemma3vl_app.generation import Progress, Sampling
from gemma3vl_app.loading import tower_attention
from gemma3vl_app.loading.assembly import Model, assemble, weight_names
from gemma3vl_app.loading.checkpoint import Checkpoint
from gemma3vl_app.loading.conversion import Stored, in_planned_form, is_quantised
from gemma3vl_app.loading.sources import open_source
from gemma3vl_app.planning import LoadPlan, check_weights, plan_for

# By name, never by an Auto class: the text class on a vision checkpoint would give random weights.
ARCHITECTURES: dict[str, tuple[type[Any], type[Any]]] = {
    "Gemma3ForConditionalGeneration": (Gemma3ForConditionalGeneration, Gemma3Config),
    "Gemma3ForCausalLM": (Gemma3ForCausalLM, Gemma3TextConfig),
}
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
MOST_LAYERS = 1000  # building more would only take minutes to fail
NAMED_KEYS = 3  # how many keys an error message names


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready for inference, with everything its checkpoint says.

    `config` and `preprocessor` are the JSON files as published, sparse where they are sparse;
    `model.config` has every value. `preprocessor` is None for text-only models and where the
    folder has none. `sampling` and `stop_ids` are the checkpoint's own; `knows` is for people;
    `revision` says exactly which weights these are; `fingerprint` changes whenever their files on
    this machine do.
    """

    model: Model
    config: dict[str, Any]
    preprocessor: dict[str, Any] | None
    tokenizer_file: Path
    sampling: Sampling
    stop_ids: frozenset[int]
    name: str
    revision: str
    fingerprint: str
    knows: str
    plan: LoadPlan


def load_model(
    source: str | Path,
    *,
    weights: str = "auto",
    device_map: str | Mapping[str, str] = "auto",
    max_memory: Mapping[str, str | int] | None = None,
    context_tokens: int | None = None,
    revision: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    for_training: bool = False,
    fast_paths: bool = True,
) -> LoadedModel:
    """Load a model by catalog name or hub id, from a checkpoint folder or a GGUF file.

    `weights`, `device_map`, `max_memory` and `context_tokens` are wishes to the planner
    (`planning.plan_for`), and so is `fast_paths`. `progress` hears of the stages. `for_training`
    leaves 4-bit weights in an order that gradients pass through. Raises `LoadError` with what is
    wrong and what to do.
    """
    check_weights(weights)
    report = progress or (lambda step: None)

    def planned(config: Mapping[str, Any], name: str) -> LoadPlan:
        return _fitting_plan(
            config,
            name=name,
            weights=weights,
            device_map=device_map,
            max_memory=max_memory,
            context_tokens=context_tokens,
            fast_paths=fast_paths and not for_training,
        )

    # 1) Whether it fits at all, before many GiB are downloaded
    entry = catalog.find(str(source))
    if entry is not None and entry.repo:
        planned(catalog.published_config(entry.size), entry.name)
    # 2) What is there, and whether it is whole, before anything large is allocated
    opened = open_source(source, revision=revision, report=report)
    checkpoint = opened.checkpoint
    skeleton = build_skeleton(checkpoint)
    _check_tensors(skeleton, opened.tensors, checkpoint.name)
    plan = planned(_as_stored(checkpoint.config, opened.tensors), checkpoint.name)
    # 3) Quantised or converted where the plan says so
    linears, text_linears, embeddings = _matrices(skeleton)
    tensors = in_planned_form(
        opened.tensors,
        text_linears,
        linears,
        embeddings,
        plan,
        name=checkpoint.name,
        fingerprint=opened.fingerprint,
        report=report,
        may_pack=not for_training,
    )
    # 4) The model, and a proof that it computes
    try:
        model = assemble(
            skeleton, tensors, plan, checkpoint.name, report, for_inference=not for_training
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise LoadError(
            f"Memory ran out while {checkpoint.name!r} was loading. Close other programs, or load "
            "it with weights='int8' or 'nf4'."
        ) from error
    if plan.tower_in_pieces:
        tower_attention.use(model)
    report(Progress("test", 0, 1, "steps", "Testing the model"))
    self_test(model, checkpoint.name, plan)
    report(Progress("test", 1, 1, "steps", f"{checkpoint.name} is ready"))
    return LoadedModel(
        model=model,
        config=checkpoint.config,
        preprocessor=checkpoint.preprocessor if hasattr(skeleton.config, "vision_config") else None,
        tokenizer_file=checkpoint.tokenizer_file,
        sampling=checkpoint.sampling,
        stop_ids=checkpoint.stop_ids,
        name=checkpoint.name,
        revision=opened.revision,
        fingerprint=opened.fingerprint,
        knows=opened.knows,
        plan=plan,
    )


def _as_stored(config: dict[str, Any], tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """Return a config whose dtype is that of the largest tensor: some say another one."""
    dtype = max(tensors.values(), key=lambda each: each.nbytes).dtype
    wide = dtype.is_floating_point and dtype != torch.bfloat16
    return {**config, "dtype": "float32"} if wide else config


def build_skeleton(checkpoint: Checkpoint) -> Model:
    """Return the model that config.json names, with shapes but no values (on the meta device)."""
    named = checkpoint.config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        known = " and ".join(ARCHITECTURES)
        found = ascii(architecture)[:80]
        raise LoadError(f"{checkpoint.name!r} is a {found}; only {known} can be loaded.")
    model_class, config_class = ARCHITECTURES[architecture]
    # How the weights are stored is read from the weights themselves: lists of skipped modules in
    # old repositories name modules as they were called before transformers 5.
    config_json = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
    _check_quantisation(checkpoint)
    for part in (config_json, config_json.get("text_config"), config_json.get("vision_config")):
        layers = part.get("num_hidden_layers") if isinstance(part, dict) else None
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise LoadError(f"config.json of {checkpoint.name!r} asks for {layers:.0e} layers.")
    try:
        config = config_class.from_dict(config_json)
        with torch.device("meta"):
            skeleton: Model = model_class(config)
    except NONSENSE as error:
        raise LoadError(
            f"config.json of {checkpoint.name!r} does not describe a {architecture}. "
            "Copy it again from the original model."
        ) from error
    return skeleton


def text_matrices(skeleton: Model) -> dict[str, tuple[int, int]]:
    """Return the shapes (N, K), by weight name, of the matrices that may be quantised."""
    return _matrices(skeleton)[1]


def self_test(model: Model, name: str, plan: LoadPlan) -> None:
    """Run four tokens through `model`; raises `LoadError` unless it computes usable numbers."""
    device = next(model.get_input_embeddings().parameters()).device
    ids = torch.tensor([SELF_TEST_IDS], device=device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
    pad = model.config.get_text_config().pad_token_id
    if not torch.isfinite(logits).all():
        problem = "not-a-number values"
    elif pad is not None and (logits.argmax(-1) == pad).all():
        problem = "nothing but padding"
    else:
        return
    advice = (
        "Load it with weights='fp32'." if plan.weights != "fp32" else "Its weights are damaged."
    )
    raise LoadError(f"{name!r} computes {problem} in {plan.dtype} on {device.type}. {advice}")


def _fitting_plan(config: Mapping[str, Any], *, name: str, **wishes: Any) -> LoadPlan:
    """Return the plan for this machine as it is now; raises `LoadError` if there is none."""
    machine = hardware.detect()
    plan = plan_for(config, name=name, machine=machine, **wishes)
    here = {"cpu", "disk", *(f"cuda:{number}" for number in range(len(machine.gpus)))}
    here |= {"mps"} if machine.mps else set()
    if absent := [device for device in plan.bytes_by_device if device not in here]:
        raise LoadError(
            f"{name!r} cannot be loaded onto {absent[0]}: this machine has no such device. "
            "`gemma3vl plan` shows how it would be placed elsewhere."
        )
    if not plan.fits:
        needed = " + ".join(
            f"{each.total / 2**30:.1f} GiB on {device}"
            for device, each in plan.bytes_by_device.items()
        )
        ways = " ".join(f"({number}) {way}" for number, way in enumerate(plan.ways, start=1))
        raise LoadError(
            f"{name!r} does not fit on this machine: it needs {needed} in {plan.weights}. "
            f"{'What would fit: ' + ways if ways else 'Choose a smaller model.'}"
        )
    return plan


def _check_quantisation(checkpoint: Checkpoint) -> None:
    """Raise `LoadError` for stored quantisations that Gemma 3 cannot be computed in."""
    settings = checkpoint.config.get("quantization_config")
    if settings is None:
        return
    settings = settings if isinstance(settings, dict) else {}
    if settings.get("load_in_8bit"):
        raise LoadError(
            f"{checkpoint.name!r} is stored for LLM.int8, which computes in float16; Gemma 3 "
            "overflows there. Load the original checkpoint with weights='int8' instead."
        )
    if not settings.get("load_in_4bit"):
        method = ascii(settings.get("quant_method", "an unknown method"))[:40]
        raise LoadError(
            f"{checkpoint.name!r} is quantised by {method}, which cannot be loaded; bitsandbytes' "
            "4 bits can. Use the original checkpoint with weights='nf4' or 'int8'."
        )


def _check_tensors(skeleton: Model, tensors: Mapping[str, Stored], name: str) -> None:
    """Raise `LoadError` by name for keys that are missing, unexpected or of another shape."""
    shapes = {key: tuple(parameter.shape) for key, parameter in skeleton.named_parameters()}
    expected = {key: shapes[key] for key in weight_names(skeleton)}
    quantised = {key for key in expected if is_quantised(key, tensors)}
    # bitsandbytes stores two weights a byte, in one column
    for key in quantised:
        expected[key] = (math.prod(expected[key]) // 2, 1)
    parts = {key for key in tensors if key.rpartition(".weight.")[0] + ".weight" in quantised}
    both = expected.keys() & tensors.keys()
    for problem, keys in (
        ("lacks", expected.keys() - tensors.keys()),
        ("holds unknown", tensors.keys() - expected.keys() - parts),
        (
            "does not match its config.json in",
            {k for k in both if expected[k] != tuple(tensors[k].shape)},
        ),
        (
            "holds other than floating-point",
            {k for k in both - quantised if not tensors[k].dtype.is_floating_point},
        ),
    ):
        if keys:
            first = ", ".join(sorted(keys)[:NAMED_KEYS])
            more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
            raise LoadError(
                f"{name!r} {problem} weights: {first}{more}. "
                f"The files do not belong to the {type(skeleton).__name__} of its config.json."
            )


Shapes = dict[str, tuple[int, int]]


def _matrices(skeleton: Model) -> tuple[Shapes, Shapes, Shapes]:
    """Return shapes by weight name: of all matrices, of the text layers', of the embeddings."""
    shapes = {
        f"{name}.weight": (module.out_features, module.in_features)
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    # Quantised layers have no bias; a config that gives the text layers one keeps them as they are.
    biased = {
        f"{key}.weight"
        for key, m in skeleton.named_modules()
        if getattr(m, "bias", None) is not None
    }
    text = {key: s for key, s in shapes.items() if "vision_tower" not in key and key not in biased}
    embeddings = {
        f"{name}.weight": (module.num_embeddings, module.embedding_dim)
        for name, module in skeleton.named_modules()
        if isinstance(module, Gemma3TextScaledWordEmbedding)
    }
    return shapes, text, embeddings
