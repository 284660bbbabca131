"""Run as a program: wrote `by_core/`, a whole tiny model as Megatron-Core itself saves it.

    pip install megatron-core==0.16.1
    python -m tests.conversion.megatron.write_by_core tests/conversion/megatron/by_core

On a CPU: the layers are Megatron-Core's own, without Transformer Engine, whose layers have the same
names in a checkpoint. What Megatron Bridge adds is added here as it does: norms after two of the
linear layers, transformers' tower, and the projector. Read by the tests without Megatron.
"""

import json
import math
import sys
import zlib
from pathlib import Path

import torch

ITERATION = 7
LAYERS, HIDDEN, INNER, ROWS, PADDED_ROWS = 2, 32, 64, 300, 384
HEADS, GROUPS, HEAD_DIM = 4, 2, 16
TEXT = "language_model.model."  # the hub's names
VISION = {
    **{"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3},
    **{"num_hidden_layers": 2, "image_size": 64, "patch_size": 8, "vision_use_head": False},
}
CONFIG = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "mm_tokens_per_image": 16,
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text",
        **{"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": INNER},
        **{"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": HEAD_DIM},
        "vocab_size": ROWS,
    },
    "vision_config": {"model_type": "siglip_vision_model", **VISION},
}


def numbers(name: str, *shape: int) -> torch.Tensor:
    """Weights of the model by their names on the hub: any, but always the same, exact in bf16."""
    steps = torch.arange(math.prod(shape)) * 31 + zlib.crc32(name.encode())
    return ((steps % 251 - 125) / 128).to(torch.bfloat16).reshape(shape)


def main(target: Path) -> None:
    from megatron.core import dist_checkpointing, parallel_state

    without_gpu()
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, world_size=1, rank=0)
    parallel_state.initialize_model_parallel()
    model = whole_model().to(torch.bfloat16)
    model.load_state_dict(weights(model), strict=False)
    check_order(model.language_model.decoder.layers[0].self_attention)
    folder = target / f"iter_{ITERATION:07}"
    folder.mkdir(parents=True)
    metadata = {
        "singleton_local_shards": False,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    state = {"iteration": ITERATION, "model": model.sharded_state_dict(metadata=metadata)}
    dist_checkpointing.save(state, str(folder))
    (target / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    (target / "config.json").write_text(json.dumps(CONFIG, indent=1))
    (target / "tokenizer.json").write_text("{}")


def without_gpu() -> None:
    """Let Megatron-Core save on a CPU: it waits for a GPU, and asks which one it is on."""
    torch.cuda.synchronize = lambda: None
    torch.cuda.current_device = lambda: "cpu"


def whole_model(processes: int = 1) -> torch.nn.Module:
    """Megatron-Core's GPTModel with Gemma's norms, and beside it tower and projector.

    Of `processes` each has its share of the matrices.
    """
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.layers import RowParallelLinear
    from megatron.core.transformer import MegatronModule, TransformerConfig
    from transformers import SiglipVisionConfig, SiglipVisionModel

    class WithNorm(RowParallelLinear):  # Bridge's TERowParallelLinearLayerNorm
        def __init__(self, input_size, output_size, **options):
            super().__init__(input_size, output_size, **options)
            self.post_layernorm = torch.nn.RMSNorm(output_size)

    class Projector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mm_soft_embed_norm = torch.nn.RMSNorm(VISION["hidden_size"])
            self.proj = torch.nn.Linear(VISION["hidden_size"], HIDDEN, bias=False)

    class WithVision(MegatronModule):
        def __init__(self):
            super().__init__(config)
            self.vision_tower = SiglipVisionModel(SiglipVisionConfig(**VISION))
            self.multi_modal_projector = Projector()
            self.language_model = GPTModel(
                config,
                spec,
                vocab_size=PADDED_ROWS,
                max_sequence_length=128,
                share_embeddings_and_output_weights=True,
                position_embedding_type="rope",
            )

    config = TransformerConfig(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        ffn_hidden_size=INNER,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        kv_channels=HEAD_DIM,
        normalization="RMSNorm",
        gated_linear_unit=True,
        add_bias_linear=False,
        qk_layernorm=True,
        use_cpu_initialization=True,
        tensor_model_parallel_size=processes,
    )
    spec = get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")
    spec.submodules.self_attention.submodules.linear_proj = WithNorm
    spec.submodules.mlp.submodules.linear_fc2 = WithNorm
    return WithVision()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return `numbers` by the names that Megatron-Core's modules have in memory."""
    table = torch.zeros(PADDED_ROWS, HIDDEN, dtype=torch.bfloat16)
    table[:ROWS] = numbers(TEXT + "embed_tokens.weight", ROWS, HIDDEN)
    projection = "multi_modal_projector.mm_input_projection_weight"
    norm = "multi_modal_projector.mm_soft_emb_norm.weight"
    state = {
        "language_model.embedding.word_embeddings.weight": table,
        "language_model.decoder.final_layernorm.weight": numbers(TEXT + "norm.weight", HIDDEN),
        "multi_modal_projector.proj.weight": numbers(projection, VISION["hidden_size"], HIDDEN).T,
        "multi_modal_projector.mm_soft_embed_norm.weight": numbers(norm, VISION["hidden_size"]),
    }
    for number in range(LAYERS):
        ours, theirs = f"{TEXT}layers.{number}.", f"language_model.decoder.layers.{number}."
        state |= {theirs + key: weight for key, weight in of_layer(ours).items()}
    for key, weight in model.vision_tower.state_dict().items():
        if weight.is_floating_point():
            name = "vision_tower.vision_model." + key.removeprefix("vision_model.")
            state[f"vision_tower.{key}"] = numbers(name, *weight.shape)
    missing = {name for name, _ in model.named_parameters()} - state.keys()
    assert not missing, missing
    return state


def of_layer(prefix: str) -> dict[str, torch.Tensor]:
    """Return the weights of a layer, joined group by group as Megatron-Core takes them apart."""

    def norm(name: str, width: int = HIDDEN) -> torch.Tensor:
        return numbers(f"{prefix}{name}.weight", width)

    def matrix(name: str, rows: int, columns: int) -> torch.Tensor:
        return numbers(f"{prefix}{name}.weight", rows, columns)

    queries = matrix("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN).split(HEAD_DIM)
    keys = matrix("self_attn.k_proj", GROUPS * HEAD_DIM, HIDDEN).split(HEAD_DIM)
    values = matrix("self_attn.v_proj", GROUPS * HEAD_DIM, HIDDEN).split(HEAD_DIM)
    heads = []
    for group in range(GROUPS):
        share = HEADS // GROUPS
        heads += [*queries[group * share : (group + 1) * share], keys[group], values[group]]
    gates = [matrix(f"mlp.{name}_proj", INNER, HIDDEN) for name in ("gate", "up")]
    return {
        "input_layernorm.weight": norm("input_layernorm"),
        "self_attention.linear_qkv.weight": torch.cat(heads),
        "self_attention.q_layernorm.weight": norm("self_attn.q_norm", HEAD_DIM),
        "self_attention.k_layernorm.weight": norm("self_attn.k_norm", HEAD_DIM),
        "self_attention.linear_proj.weight": matrix("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
        "self_attention.linear_proj.post_layernorm.weight": norm("post_attention_layernorm"),
        "pre_mlp_layernorm.weight": norm("pre_feedforward_layernorm"),
        "mlp.linear_fc1.weight": torch.cat(gates),
        "mlp.linear_fc2.weight": matrix("mlp.down_proj", HIDDEN, INNER),
        "mlp.linear_fc2.post_layernorm.weight": norm("post_feedforward_layernorm"),
    }


def check_order(attention: torch.nn.Module) -> None:
    """Assert that Megatron-Core takes queries, keys and values apart to what they were."""
    hidden = torch.randn(3, 1, HIDDEN).to(torch.bfloat16)  # (length, batch, width)
    for found, name, heads, has_norm in zip(
        attention.get_query_key_value_tensors(hidden)[:3],
        *("qkv", (HEADS, GROUPS, GROUPS), (True, True, False)),
        strict=True,
    ):
        ours = f"{TEXT}layers.0.self_attn.{name}"
        expected = hidden @ numbers(f"{ours}_proj.weight", heads * HEAD_DIM, HIDDEN).T
        expected = expected.reshape(3, 1, heads, HEAD_DIM)
        if has_norm:
            norm = numbers(f"{ours}_norm.weight", HEAD_DIM)
            expected = torch.nn.functional.rms_norm(expected, (HEAD_DIM,), norm, eps=1e-5)
        torch.testing.assert_close(found, expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
