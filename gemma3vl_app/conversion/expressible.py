"""What a language model's config may say that other programs' files have no place for."""

from __future__ import annotations

from typing import Any

from gemma3vl_app.errors import ConversionError

GLOBAL, SLIDING = "full_attention", "sliding_attention"
ACTIVATION = "gelu_pytorch_tanh"


def check_plain(config: Any, form: str) -> None:
    """Raise `ConversionError` for settings that a `form` would lose, and so answer differently.

    `config` is transformers' of the language model. Positions may be scaled in global layers, by a
    factor, as in the released sizes.
    """
    kinds = config.rope_parameters
    scaled = kinds[GLOBAL].get("rope_type")
    for is_odd, what in (
        (scaled not in (None, "default", "linear"), f"positions scaled by {scaled!r}"),
        (is_scaled(kinds[SLIDING]), "scaled positions in its sliding layers"),
        (config.final_logit_softcapping is not None, "capped logits"),
        (config.attn_logit_softcapping is not None, "capped attention"),
        (config.use_bidirectional_attention, "attention both ways"),
        (config.hidden_activation != ACTIVATION, f"the activation {config.hidden_activation!r}"),
    ):
        if is_odd:
            raise ConversionError(
                f"This model has {what}; {form} of Gemma 3 cannot say so. "
                "Write 'transformers5', which says everything."
            )


def is_scaled(rope: dict[str, Any]) -> bool:
    """Whether the positions of a kind of layers are scaled."""
    return rope.get("rope_type", "default") not in (None, "default")
