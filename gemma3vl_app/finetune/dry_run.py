"""`dry_run`: what a recipe trains and what it takes on each GPU, without weights or a GPU.

The model is built on the meta device, where tensors have shapes and no memory, and set up as for
training; parameters are counted on it. Bytes follow from the counts by the formulas below. They
are estimates of the most at one time, not measured on GPUs; docs/finetuning.md explains them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
)

from gemma3vl_app import hardware
from gemma3vl_app.finetune.methods import put_method, trainable
from gemma3vl_app.finetune.recipe import Recipe, check_recipe
from gemma3vl_app.finetune.run_folder import KEPT_CHECKPOINTS
from gemma3vl_app.loading.assembly import Model
from gemma3vl_app.loading.checkpoint_files import SHARD_BYTES
from gemma3vl_app.planning.architecture import Architecture, Part, Vision, architecture
from gemma3vl_app.planning.memory import BYTES, FLOAT32, GPU_RUNTIME_BYTES, weight_bytes
from gemma3vl_app.planning.sources import described

GPU = "a100-80"
GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64)
MOMENTS = 2  # AdamW keeps a mean and a mean of squares for each trained parameter
LAYERS_GATHERED = 2  # FSDP2 fetches the next layer while one computes


@dataclass(frozen=True, kw_only=True)
class GpuBytes:
    """What one GPU holds at the worst moment of a step, in bytes, by purpose."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    reserve: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a recipe would train and take.

    `parameters` counts all, `trained` those that learn, in `trained_tensors` tensors. A step sees
    at most `tokens_per_step` tokens; each GPU computes `micro_batches` one after the other.
    `host_bytes` are what the first machine's memory holds of the model at once, `disk_bytes` the
    model's files, checkpoints and the result.
    `gpus_needed` are the fewest GPUs of `gpu_bytes` that hold it, by sharding ("none": a whole copy
    on each, "fsdp": shared out); None where no number does, or where it is not supported.
    """

    recipe: Recipe
    dtype: str
    parameters: int
    trained: int
    trained_tensors: int
    tokens_per_step: int
    micro_batches: int
    per_gpu: GpuBytes
    host_bytes: int
    disk_bytes: int
    gpu_bytes: int
    gpus_needed: Mapping[str, int | None]

    @property
    def fits(self) -> bool:
        """Whether the recipe as it stands fits on its GPUs."""
        return self.per_gpu.total <= self.gpu_bytes


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Parameters by what becomes of them; all that the formulas need of a model."""

    model: Architecture
    parameters: int
    trained: int
    trained_tensors: int
    frozen: tuple[Part, ...]


def dry_run(recipe: Recipe, *, pictures: int = 1) -> DryRun:
    """Count what `recipe` trains and takes, for conversations of `max_tokens` with `pictures` each.

    Downloads nothing. Raises `RecipeError` for a recipe that makes no sense, and `LoadError` for a
    model whose config.json is not known here.
    """
    check_recipe(recipe)
    counts = count(recipe)
    dtype = "float32" if recipe.precision == "fp32" else "bfloat16"
    gpu_bytes = hardware.KNOWN_GPUS[GPU].free_bytes
    needed: dict[str, int | None] = {}
    for sharding in ("none", "fsdp"):
        needed[sharding] = None
        if sharding == "fsdp" and recipe.method == "qlora":
            continue  # 4-bit weights are not shared out
        for gpus in (n for n in GPU_COUNTS if n > 1 or sharding == "none"):
            if recipe.global_batch % (recipe.micro_batch * gpus):
                continue
            wanted = replace(recipe, gpus=gpus, sharding=sharding)
            if gpu_bytes_of(counts, wanted, dtype, pictures).total <= gpu_bytes:
                needed[sharding] = gpus
                break
    return DryRun(
        recipe=recipe,
        dtype=dtype,
        parameters=counts.parameters,
        trained=counts.trained,
        trained_tensors=counts.trained_tensors,
        tokens_per_step=recipe.global_batch * recipe.max_tokens,
        micro_batches=recipe.global_batch // (recipe.micro_batch * recipe.gpus),
        per_gpu=gpu_bytes_of(counts, recipe, dtype, pictures),
        host_bytes=_host(counts, recipe, dtype),
        disk_bytes=_disk(counts, recipe, dtype),
        gpu_bytes=gpu_bytes,
        gpus_needed=needed,
    )


# --- counting, on the meta device ---


def count(recipe: Recipe) -> Counts:
    """Count a recipe's parameters on a model without memory, set up as for training."""
    _, config, _ = described(recipe.model)
    sizes = architecture(config)
    with torch.device("meta"):
        model = put_method(_skeleton(config), recipe)
    trained = [each.numel() for each in trainable(model).values()]
    parts = (*sizes.home, *sizes.layers)
    frozen = parts if recipe.method != "sft" else tuple(p for p in parts if not _learns(p, recipe))
    return Counts(
        model=sizes,
        parameters=sum(each.numel() for each in model.parameters()),
        trained=sum(trained),
        trained_tensors=len(trained),
        frozen=frozen,
    )


def _skeleton(config: dict[str, Any]) -> Model:
    if "text_config" in config:
        return Gemma3ForConditionalGeneration(Gemma3Config.from_dict(config))
    return Gemma3ForCausalLM(Gemma3TextConfig.from_dict(config))


def _learns(part: Part, recipe: Recipe) -> bool:
    if part.name == "model.vision_tower":
        return recipe.train_vision_tower
    if part.name == "model.multi_modal_projector":
        return recipe.train_projector
    return recipe.train_language_model


# --- bytes ---


def gpu_bytes_of(counts: Counts, recipe: Recipe, dtype: str, pictures: int) -> GpuBytes:
    """Return what each GPU holds while `recipe` trains with `pictures` in a conversation."""
    return GpuBytes(
        weights=_weights(counts, recipe, dtype),
        gradients=_gradients(counts, recipe, dtype),
        optimizer=_optimizer(counts, recipe),
        activations=_activations(counts.model, recipe, dtype, pictures),
        logits=_logits(counts.model, recipe, dtype),
        reserve=_reserve(counts.model, recipe, dtype),
    )


def _host(counts: Counts, recipe: Recipe, dtype: str) -> int:
    """A shard of the result and, where the model is shared out, all of it: from there it goes."""
    frozen = sum(weight_bytes(part, "", dtype) for part in counts.frozen)
    model = frozen + counts.trained * FLOAT32 if recipe.sharding == "fsdp" else 0
    return model + min(SHARD_BYTES, _result(counts, recipe, dtype))


def _disk(counts: Counts, recipe: Recipe, dtype: str) -> int:
    """The model as published, the result, and the checkpoints with one that is being written."""
    adapter = counts.trained if recipe.method != "sft" else 0
    published = (counts.parameters - adapter) * BYTES["bfloat16"]
    checkpoint = (1 + MOMENTS) * counts.trained * FLOAT32
    return published + _result(counts, recipe, dtype) + (KEPT_CHECKPOINTS + 1) * checkpoint


def _result(counts: Counts, recipe: Recipe, dtype: str) -> int:
    if recipe.method == "sft":
        return counts.parameters * BYTES[dtype]
    return counts.trained * FLOAT32


def _weights(counts: Counts, recipe: Recipe, dtype: str) -> int:
    """Frozen weights in the arithmetic's dtype (or nf4), trained ones in fp32.

    Beside fp32, a step in bf16 needs trained weights in bf16, too: autocast keeps all its casts
    until the step's forward pass ends; FSDP2 gathers layer by layer.
    """
    stored = "nf4" if recipe.method == "qlora" else ""
    frozen = sum(weight_bytes(part, stored, dtype) for part in counts.frozen)
    trained = counts.trained * FLOAT32
    if recipe.sharding == "fsdp":
        return _share(frozen + trained, recipe) + _gathered(counts.model) * BYTES[dtype]
    return frozen + trained + (counts.trained * BYTES[dtype] if dtype != "float32" else 0)


def _gradients(counts: Counts, recipe: Recipe, dtype: str) -> int:
    """One in fp32 for each trained parameter.

    DDP has as much again: the buckets that travel. FSDP2 keeps a share, and whole gradients of the
    largest unit, once as computed and once in fp32 on their way.
    """
    whole = counts.trained * FLOAT32
    if recipe.sharding == "fsdp":
        unit = counts.model.home[0].parameters if recipe.method == "sft" else 0
        return _share(whole, recipe) + unit * (BYTES[dtype] + FLOAT32)
    return whole if recipe.gpus == 1 else 2 * whole


def _optimizer(counts: Counts, recipe: Recipe) -> int:
    """AdamW's moments in fp32, and the number of the step for each tensor."""
    return _share(MOMENTS * counts.trained * FLOAT32, recipe) + counts.trained_tensors * FLOAT32


def _share(size: int, recipe: Recipe) -> int:
    return math.ceil(size / recipe.gpus) if recipe.sharding == "fsdp" else size


def _gathered(model: Architecture) -> int:
    """Parameters that FSDP2 holds whole: layers at work, and those outside the decoder layers."""
    layer = max(each.parameters for each in model.layers)
    return LAYERS_GATHERED * layer + sum(each.parameters for each in model.home)


# What autograd keeps is counted as in Korthikanti et al. 2022, "Reducing Activation Recomputation
# in Large Transformer Models" (arXiv:2205.05198, section 4), operation by operation; their layer
# has other parts, so the counts are those of Gemma 3 and SigLIP in transformers. Attention is
# fused: it keeps its inputs and output, and no scores.


def _activations(model: Architecture, recipe: Recipe, dtype: str, pictures: int) -> int:
    """What the backward pass needs of the forward pass.

    With gradient checkpointing: what goes into each layer, and all of one layer at a time.
    """
    size, tokens = BYTES[dtype], recipe.micro_batch * recipe.max_tokens
    # With trained embeddings in fp32, what flows between layers is fp32 under autocast.
    weights_learn = recipe.method == "sft" and recipe.train_language_model
    stream = FLOAT32 if weights_learn and recipe.sharding == "none" else size
    within = layer_bytes(model, size, norms_learn=weights_learn)
    text = _kept(len(model.layers), model.hidden * stream, within, recipe)
    # Two masks, of global and of sliding layers; attention makes its own numbers of one.
    masks = recipe.max_tokens * (2 + _kept(len(model.layers), 0, size, recipe))
    found = tokens * (text + masks)
    if model.vision is not None and pictures:
        patches = recipe.micro_batch * pictures * model.vision.patches
        found += patches * _vision_bytes(model.vision, recipe, stream, size)
    return found


def _kept(layers: int, between: int, within: int, recipe: Recipe) -> int:
    """Return bytes for each token: `between` layers, and `within` one or all of them."""
    return layers * between + within if recipe.gradient_checkpointing else layers * within


def layer_bytes(model: Architecture, size: int, *, norms_learn: bool) -> int:
    """Return what one decoder layer keeps of a token, with numbers of `size` bytes.

    Four norms and those of queries and keys compute in fp32; they keep their input and, where they
    learn, the normalised values. The linear layers keep their inputs, attention keeps queries, keys
    and values (after rope, and repeated for each head) and its output, the perceptron four wide
    vectors.
    """
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    norms = (1 + norms_learn) * FLOAT32 * (4 * model.hidden + queries + keys)
    attention = model.hidden + 5 * queries + 2 * keys
    perceptron = model.hidden + 4 * model.intermediate
    return norms + size * (attention + perceptron)


def _vision_bytes(vision: Vision, recipe: Recipe, stream: int, size: int) -> int:
    """Return what the tower takes for a patch; one that does not learn keeps nothing behind it."""
    within = tower_layer_bytes(vision, size)
    if not recipe.train_vision_tower:
        return within
    return _kept(vision.layers, vision.width * stream, within, recipe)


def tower_layer_bytes(vision: Vision, size: int) -> int:
    """Return what one layer of the tower keeps of a patch, with numbers of `size` bytes.

    Two norms keep their inputs (autocast computes them in fp32); linear layers their inputs,
    attention queries, keys, values and output, the perceptron two wide vectors.
    """
    return 2 * FLOAT32 * vision.width + size * (7 * vision.width + 2 * vision.intermediate)


def _logits(model: Architecture, recipe: Recipe, dtype: str) -> int:
    """Scores over the vocabulary: as computed, in fp32, and their softmax.

    They are computed where answers are learned; the most is a conversation of nothing else.
    """
    tokens = recipe.micro_batch * recipe.max_tokens
    return tokens * model.vocabulary * (BYTES[dtype] + 2 * FLOAT32)


def _reserve(model: Architecture, recipe: Recipe, dtype: str) -> int:
    """The runtime and, for 4-bit weights, one matrix turned back into the arithmetic's dtype."""
    matrix = model.hidden * model.intermediate * BYTES[dtype]
    return GPU_RUNTIME_BYTES + (matrix if recipe.method == "qlora" else 0)
