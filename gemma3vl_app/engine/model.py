"""The text model as the engine sees it: ids to vectors, through the layers, to logits.

Runs transformers' own modules; adds only our attention (`attention`). Knows nothing of requests.
Shapes: B rows, n new tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from gemma3vl_app.engine import attention

Layer = Callable[[torch.Tensor], torch.Tensor]


def finish_work(tensor: torch.Tensor) -> None:
    """Wait until `tensor` is computed: GPUs run behind, and a unit of work must be timed whole."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
    elif tensor.device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a model's keys and values look like, by layer where they differ.

    `windows` are tokens, None for global attention; `heads` and `head_dim` those of keys and
    values; `width` is the model's own.
    """

    windows: tuple[int | None, ...]
    devices: tuple[torch.device, ...]
    heads: int
    head_dim: int
    width: int
    dtype: torch.dtype


class TextModel:
    """Transformers' Gemma 3 text model, run over sequences that keep their own keys and values."""

    def __init__(self, model: Gemma3ForConditionalGeneration | Gemma3ForCausalLM) -> None:
        if isinstance(model, Gemma3ForConditionalGeneration):
            model.set_attn_implementation({"text_config": attention.NAME})
            self._text = model.model.language_model
        else:
            model.set_attn_implementation(attention.NAME)
            self._text = model.model
        self._head = model.lm_head
        self._config = self._text.config

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer its sliding window in tokens, or None for global attention."""
        return tuple(
            int(self._config.sliding_window) if kind == "sliding_attention" else None
            for kind in self._config.layer_types
        )

    @property
    def context_tokens(self) -> int:
        """The longest sequence the model was made for, in tokens."""
        return int(self._config.max_position_embeddings)

    @property
    def layout(self) -> Layout:
        """What its keys and values look like, and where they lie."""
        layers = self._text.layers
        return Layout(
            windows=self.windows,
            devices=tuple(layer.input_layernorm.weight.device for layer in layers),
            heads=int(self._config.num_key_value_heads),
            head_dim=int(self._config.head_dim),
            width=int(self._config.hidden_size),
            dtype=self._text.norm.weight.dtype,  # the arithmetic, whatever form matrices have
        )

    @property
    def heads(self) -> int:
        """Query heads of each layer."""
        return int(self._config.num_attention_heads)

    @property
    def _element_bytes(self) -> int:
        """Bytes of a number in the arithmetic; norms have it whatever form matrices have."""
        return int(self._text.norm.weight.element_size())

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's vector between two layers."""
        return int(self._config.hidden_size * self._element_bytes)

    @property
    def activation_bytes(self) -> int:
        """About the bytes that one token takes inside a layer, as the planner counts them."""
        widths = 6 * self._config.hidden_size + 3 * self._config.intermediate_size
        return int(widths * self._element_bytes)

    @property
    def key_bytes(self) -> int:
        """Bytes of one token's keys and values in one layer."""
        width = 2 * self._config.num_key_value_heads * self._config.head_dim
        return int(width * self._element_bytes)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return int(self._head.out_features)

    def embed(
        self, ids: torch.Tensor, pictures: Sequence[tuple[int, torch.Tensor]] = ()
    ) -> torch.Tensor:
        """Turn ids (B, n) into vectors (B, n, D), pictures put in at (column, features (T, D)).

        Soft-token ids may lie outside the vocabulary: only what replaces them counts.
        """
        table = self._text.embed_tokens
        known = ids.masked_fill(ids >= table.num_embeddings, 0).to(table.weight.device)
        vectors = table(known)
        for column, features in pictures:
            vectors[0, column : column + features.shape[0]] = features.to(vectors)
        return vectors  # type: ignore[no-any-return]

    def forward(self, vectors: torch.Tensor, batch: attention.Pass) -> torch.Tensor:
        """Run vectors (B, n, D) through all layers, storing keys and values; returns (B, n, D)."""
        for layer in self.layers(vectors, batch):
            vectors = layer(vectors)
        batch.advance()
        return self.norm(vectors)

    def layers(self, vectors: torch.Tensor, batch: attention.Pass) -> list[Layer]:
        """Return what each layer does to vectors of this shape, dtype and device, in order.

        Where layers lie on several devices, they fetch what they are given (loading connects them);
        keys and values stay where their layer is.
        """
        positions = batch.positions(vectors.device)  # (B, n)
        rotary = {
            kind: self._text.rotary_emb(vectors, positions, kind)
            for kind in set(self._config.layer_types)
        }
        return [
            partial(layer, position_embeddings=rotary[kind], batch=batch)
            for layer, kind in zip(self._text.layers, self._config.layer_types, strict=True)
        ]

    def norm(self, vectors: torch.Tensor) -> torch.Tensor:
        """Apply the final norm, which comes between the last layer and `logits`."""
        normed: torch.Tensor = self._text.norm(vectors)
        return normed

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        """Turn vectors (D,) or (B, D) into fp32 logits (V,) or (B, V)."""
        head = self._head
        few_rows = vectors.dim() == 2 and len(vectors) > 1
        if few_rows and type(head) is torch.nn.Linear:
            weight = head.weight  # (V, D)
            if weight.device.type == "cpu" and weight.dtype == torch.float32:
                # The same product with the weight in front: for few rows the fp32 library is
                # faster so (8 rows, 262,208 x 64: 5.4 ms against 9.5 ms on two Zen 4 cores; bf16
                # does not gain).
                return (weight @ vectors.to(weight.device).T).T
        logits: torch.Tensor = head(vectors).float()
        return logits
