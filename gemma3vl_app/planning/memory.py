"""How many bytes each thing takes: weights, keys and values, activations, what the runtime needs.

Formulas over an `Architecture`, with the constants that were calibrated against measured processes
(docs/memory.md has the figures; `make bench` measures them again). No torch.
"""

from __future__ import annotations

from gemma3vl_app.planning.architecture import Architecture, Part

BYTES = {"bfloat16": 2, "float32": 4}
MIB = 1 << 20

NF4_BLOCK = 64  # weights that share one float32 scale
INT4_GROUP = 32  # weights that share a scale and a zero
FLOAT32 = 4
W16 = 2

# --- calibrated ---
CPU_RUNTIME_BYTES = 330 * MIB  # tokenizer, thread pools, allocator: what one loaded model adds
GPU_RUNTIME_BYTES = 800 * MIB  # CUDA context, kernels, allocator slack: not measured
MPS_RUNTIME_BYTES = 400 * MIB  # not measured
CPU_CHUNK_TOKENS = 512  # a unit of prefill on a CPU; a GPU takes the engine's largest chunk
GPU_CHUNK_TOKENS = 2048
WINDOWS_KEPT = 3  # a sliding layer's buffer grows to three windows before it drops what is past


def weight_bytes(part: Part, weights: str, dtype: str, table: str = "") -> int:
    """Return what a part's weights take, stored as `weights` and computed in `dtype`.

    nf4: half a byte a weight and a float32 per 64 (no double quantisation); int8: a byte a weight
    and a float32 per output feature; int4: half a byte, and a scale and a zero of 2 bytes per 32.
    w16: two bytes. `table` is the form of the embeddings. What is not quantised has the
    arithmetic's dtype.
    """
    if weights == "w16":
        return W16 * part.parameters
    matrices = _matrix_bytes(part.matrices, part.matrix_rows, weights, dtype)
    return (
        part.others * BYTES[dtype]
        + matrices
        + _matrix_bytes(part.table, part.table_rows, table, dtype)
    )


def _matrix_bytes(count: int, rows: int, form: str, dtype: str) -> int:
    if form == "nf4":
        return count // 2 + count // NF4_BLOCK * FLOAT32
    if form == "int4":
        return count // 2 + count // INT4_GROUP * 2 * W16
    if form == "int8":
        return count + rows * FLOAT32
    return count * BYTES[dtype]


def kv_bytes(model: Architecture, layer: int, context: int, sequences: int, dtype: str) -> int:
    """Return what the keys and values of one layer take for `sequences` of `context` tokens.

    Global layers keep every token; sliding ones up to three windows (`engine.kv`).
    """
    window = model.windows[layer]
    tokens = context if window is None else min(context, WINDOWS_KEPT * window)
    return 2 * tokens * model.kv_heads * model.head_dim * BYTES[dtype] * sequences


def vision_bytes(model: Architecture, images: int, dtype: str) -> int:
    """Return what the tower's activations take: pictures are encoded one at a time.

    Of a layer: its input, queries, keys, values, attention's output and their sum, and the wide
    vectors of the perceptron before and after the activation function. Encoded pictures stay.
    """
    if model.vision is None or images < 1:
        return 0
    sizes = model.vision
    at_work = sizes.patches * (6 * sizes.width + 2 * sizes.intermediate)
    kept = images * model.image_tokens * model.hidden
    return (at_work + kept) * BYTES[dtype]


def logits_bytes(model: Architecture, sequences: int) -> int:
    """Return what scores over the vocabulary take: fp32, as logits, sorted and normalised."""
    return 3 * sequences * model.vocabulary * FLOAT32


def reserve_bytes(model: Architecture, device: str, weights: str, dtype: str, context: int) -> int:
    """Return what a device needs besides: the runtime, and activations of one chunk of prefill.

    Of a layer: six vectors of the model's width and three of the perceptron's; with quantised
    weights also one matrix turned back into `dtype`.
    """
    gpu = not device.startswith(("cpu", "disk"))
    chunk = min(context, GPU_CHUNK_TOKENS if gpu else CPU_CHUNK_TOKENS)
    activations = chunk * (6 * model.hidden + 3 * model.intermediate) * BYTES[dtype]
    matrix = model.hidden * model.intermediate * BYTES[dtype]
    scratch = matrix if weights in ("nf4", "int8", "int4") else 0
    return runtime_bytes(device) + activations + scratch


def runtime_bytes(device: str) -> int:
    """Return what a loaded model takes on a device besides its weights, before it is used."""
    if device.startswith("cuda"):
        return GPU_RUNTIME_BYTES
    return MPS_RUNTIME_BYTES if device == "mps" else CPU_RUNTIME_BYTES
