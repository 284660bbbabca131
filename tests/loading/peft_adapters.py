"""LoRA adapters of the tiny checkpoint, made and saved by peft itself, with random weights."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from gemma3vl_app.loading import load_model

TEXT = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
TOWER = r".*vision_tower.*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
KINDS = {
    "plain": {"target_modules": TEXT, "lora_alpha": 4},
    "dora": {"target_modules": TEXT, "lora_alpha": 3, "use_dora": True},
    "rslora": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "lora_alpha": 2,
        "use_rslora": True,
        "rank_pattern": {"down_proj": 2, r"model.language_model.layers.1.self_attn.q_proj": 6},
        "alpha_pattern": {r".*\.v_proj": 5},
    },
    "tower": {"target_modules": TOWER, "lora_alpha": 8, "use_dora": True},
}


def save_adapter(base: Path, folder: Path, *, seed: int = 1, **settings) -> Path:
    """Write a random adapter of the checkpoint `base` into `folder`, and return the folder."""
    model = load_model(base, weights="fp32").model
    torch.manual_seed(seed)
    config = LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.6, 1.4))
    adapted.save_pretrained(str(folder))
    return folder
