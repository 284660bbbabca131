"""A method put on a model: which of its weights learn, and how.

`sft` trains weights themselves, in fp32; `lora`, `dora` and `qlora` train an adapter of peft's
beside them. Knows nothing of data or of training loops, and works on a model without values (on the
meta device) too, so that a plan can count what would be trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gemma3vl_app.errors import RecipeError, TrainingError
from gemma3vl_app.finetune.recipe import Recipe
from gemma3vl_app.loading.assembly import Model

TOWER, PROJECTOR = "model.vision_tower.", "model.multi_modal_projector."
ADAPTERS = ("lora", "dora", "qlora")

# Layers that adapters are put beside, as peft matches them: a pattern for the whole name. Written
# into adapter_config.json, it says the same in every version of transformers 5.
TEXT_LAYERS = r"model\.(language_model\.)?layers\.\d+\.(self_attn|mlp)\.\w+_proj"
TOWER_LAYERS = r"model\.vision_tower\..*\.layers\.\d+\..*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


def put_method(model: Model, recipe: Recipe) -> nn.Module:
    """Let exactly the weights learn that `recipe` names, and return the model to train.

    It is `model` itself for sft, else peft's `PeftModel` around it. Deterministic: the recipe's
    seed decides how an adapter begins. Raises `RecipeError` where a part shall learn that the model
    has not; `check_recipe` has said all else.
    """
    _check(model, recipe)
    model.requires_grad_(False)
    if recipe.method not in ADAPTERS:
        _train_parts(model, recipe)
        return model
    if recipe.method == "qlora":
        keep_gradients(model)
    return _with_adapter(model, recipe)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that learn, by name; one that is used twice counts once."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return how many values learn, and how many there are; those in 4 bits count as values."""
    learning = sum(parameter.numel() for parameter in trainable(model).values())
    return learning, sum(map(_values, model.parameters()))


def keep_gradients(model: nn.Module) -> None:
    """Make sure that 4-bit layers let gradients through for as long as `model` lives.

    On CPUs with AVX512-BF16, bitsandbytes packs 4-bit weights anew in the first pass of an
    evaluation, for good. What it computes with packed weights is unknown to autograd: from then on
    an adapter would learn nothing, silently. Raises `TrainingError` for weights packed already.
    """
    layers: list[Any] = [each for each in model.modules() if _is_4bit(each)]
    if any(getattr(each.weight.quant_state, "packing_format_for_cpu", False) for each in layers):
        raise TrainingError(
            "The model's 4-bit weights are packed for answering, and would give no gradients. "
            "Load it anew for the training: leave `model` out."
        )
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False  # what bitsandbytes asks before it packs


def _check(model: Model, recipe: Recipe) -> None:
    has_vision = hasattr(model.config, "vision_config")
    for field in ("train_vision_tower", "train_projector"):
        if getattr(recipe, field) and not has_vision:
            raise RecipeError(f"{field} is set, but {recipe.model!r} reads text only.")


def _train_parts(model: Model, recipe: Recipe) -> None:
    """Switch parts on, and keep what learns in fp32: small steps vanish in bf16."""
    for name, parameter in model.named_parameters():
        if name.startswith(TOWER):
            learns = recipe.train_vision_tower
        elif name.startswith(PROJECTOR):
            learns = recipe.train_projector
        else:
            learns = recipe.train_language_model
        if learns:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def _with_adapter(model: Model, recipe: Recipe) -> nn.Module:
    # Here, not above: peft takes seconds to import, and sft does without.
    from peft import LoraConfig, get_peft_model

    parts = [TEXT_LAYERS] if recipe.train_language_model else []
    parts += [TOWER_LAYERS] if recipe.train_vision_tower else []
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        use_dora=recipe.method == "dora",
        target_modules="|".join(f"({part})" for part in parts),
    )
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        # The adapter's weights are fp32 even beside bf16 ones, as small steps need.
        adapted: nn.Module = get_peft_model(model, config, low_cpu_mem_usage=on_meta)
    return adapted


def _is_4bit(module: nn.Module) -> bool:
    return hasattr(getattr(module, "weight", None), "quant_state")


def _values(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())
