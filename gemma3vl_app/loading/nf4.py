"""4-bit weights (nf4) through bitsandbytes: a matrix to stored parts, stored parts to a layer.

Knows nothing of files, of which layers are quantised (`conversion`), or of devices' limits.
Shapes: N output features, K input features; a block is 64 weights that share one scale (absmax).

Two stored forms: bitsandbytes' own (its keys for saved checkpoints), and, for processors with
AVX512-BF16, the order of weights that its fused CPU kernel reads. bitsandbytes would reorder them
inside the first forward pass, at a cost of memory and time; stored in that order, they are used
from the file's memory map as they lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from gemma3vl_app.errors import LoadError

if TYPE_CHECKING:
    from bitsandbytes.nn.modules import Linear4bit

BLOCK = 64
LEVELS = 16
PIECE = 1 << 18  # weights that are quantised at once
DAMAGED = "The 4-bit weights' scales do not fit their weights. Download the model again."
ABSMAX, PACKED_ABSMAX = ".absmax", ".cpu_absmax"  # after the weight's own name
PACKED_ROWS = 32  # the fused CPU kernel works on groups of so many output features

Parts = dict[str, torch.Tensor]  # by what follows the weight's name; "" is the weight itself


def _functional() -> Any:
    """Return bitsandbytes' functions, untyped: its own annotations stop half-way.

    Imported here, not above: it takes seconds, and most models have no 4-bit weights.
    """
    from bitsandbytes import functional

    return functional


def quantise(weight: torch.Tensor) -> Parts:
    """Return the parts of a matrix (N, K) in bitsandbytes' own form.

    Absolute maxima stay float32 (no double quantisation): half a byte a weight and 4 bytes a block.
    """
    # Some rows at a time, since it takes 24 bytes a weight meanwhile. Blocks lie within rows.
    whole_blocks = weight.shape[1] % BLOCK == 0
    rows = max(1, PIECE // weight.shape[1]) if whole_blocks else weight.shape[0]
    pieces = [
        _functional().quantize_4bit(
            piece.contiguous(), blocksize=BLOCK, compress_statistics=False, quant_type="nf4"
        )
        for piece in torch.split(weight, rows)
    ]
    state = pieces[0][1]
    state.shape, state.absmax = weight.shape, torch.cat([each.absmax for _, each in pieces])
    data = torch.cat([data for data, _ in pieces])
    return {"": data} | {f".{key}": part for key, part in state.as_dict(packed=True).items()}


def quantised_sizes(
    shape: Sequence[int], dtype: torch.dtype
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each part that `quantise` gives for a matrix, by its key."""
    values = math.prod(shape)
    state = _functional().QuantState(
        absmax=torch.empty(-(-values // BLOCK)),
        shape=torch.Size(shape),
        code=_functional().get_4bit_type("nf4", device="cpu"),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
    )
    parts = {f".{key}": part for key, part in state.as_dict(packed=True).items()}
    sizes = {key: (part.dtype, tuple(part.shape)) for key, part in parts.items()}
    return {"": (torch.uint8, (-(-values // 2), 1))} | sizes


def dequantise(parts: Parts) -> torch.Tensor:
    """Return the matrix (N, K) that parts in bitsandbytes' own form stand for, in their dtype."""
    weight: torch.Tensor = _functional().dequantize_4bit(parts[""], _state(parts))
    return weight


def packs_for_cpu() -> bool:
    """Whether the CPU here has the fused kernel, and this bitsandbytes its way of packing."""
    return bool(_functional().has_avx512bf16()) and hasattr(
        _functional(), "_convert_weight_packed_for_cpu"
    )


def pack_for_cpu(parts: Parts) -> Parts:
    """Return parts in the order that the fused CPU kernel reads: (N, K / 2), and bf16 scales."""
    state = _state(parts)
    if state.quant_type != "nf4" or state.blocksize != BLOCK:  # stored otherwise by somebody else
        return pack_for_cpu(quantise(dequantise(parts)))
    data, state = _functional()._convert_weight_packed_for_cpu(parts[""], state)
    return {"": data, PACKED_ABSMAX: state.absmax}


def fits(shape: torch.Size | tuple[int, ...], *, packed: bool) -> bool:
    """Whether a matrix (N, K) of this shape can be stored; others stay as they are."""
    return shape[1] % BLOCK == 0 and not (packed and shape[0] % PACKED_ROWS)


def layer(
    parts: Parts, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Linear4bit:
    """Return a linear layer without bias over stored `parts`, computing in `dtype`."""
    from bitsandbytes.nn import modules

    outputs, inputs = shape
    kind: Any = modules.Linear4bit
    if PACKED_ABSMAX in parts:
        from gemma3vl_app.loading.nf4_packed import PackedLinear4bit

        kind = PackedLinear4bit
    linear: Linear4bit = kind(
        inputs,
        outputs,
        bias=False,
        compute_dtype=dtype,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    if PACKED_ABSMAX in parts:
        linear.weight = modules.Params4bit(
            parts[""],
            requires_grad=False,
            quant_state=_packed_state(parts, shape),
            blocksize=BLOCK,
            compress_statistics=False,
            quant_type="nf4",
            module=linear,
            bnb_quantized=True,
        )
    else:
        _state(parts)  # checks them
        stats = {f"weight{key}": part for key, part in parts.items() if key}
        linear.weight = modules.Params4bit.from_prequantized(
            parts[""], stats, device=device, module=linear
        )
        # Loading packs what is to be packed. Left to itself, bitsandbytes would pack in the first
        # pass without gradients, the self-test's, and a training would learn nothing from then on.
        untyped_linear: Any = linear
        untyped_linear.support_avx512bf16_for_cpu = False
    return linear


def _state(parts: Parts) -> Any:
    """Return bitsandbytes' description of parts; raises `LoadError` where they do not fit."""
    stats = {f"weight{key}": part for key, part in parts.items() if key}
    try:
        state = _functional().QuantState.from_dict(stats, device=parts[""].device)
        values, block = 2 * parts[""].numel(), int(state.blocksize)
        whole = state.shape.numel() == values and state.code.numel() == LEVELS
        whole = whole and 0 < block <= values and state.absmax.numel() == -(-values // block)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError) as error:
        raise LoadError(DAMAGED) from error
    except (TypeError, ValueError) as error:
        raise LoadError(DAMAGED) from error
    if not whole:
        raise LoadError(DAMAGED)
    return state


def _packed_state(parts: Parts, shape: tuple[int, int]) -> Any:
    """Describe packed parts as bitsandbytes does after it has packed them itself."""
    state = _functional().QuantState(
        absmax=parts[PACKED_ABSMAX],
        shape=torch.Size(shape),
        code=_functional().get_4bit_type("nf4", device="cpu"),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=torch.bfloat16,
    )
    state.packing_format_for_cpu = True
    # What it needs to undo the packing, on the way to a GPU or into a file
    state.original_dtype, state.original_nested = torch.bfloat16, False
    state.original_qshape = torch.Size((shape[0] * shape[1] // 2, 1))
    state.original_storage_type = None
    return state
