"""A peft LoRA folder, read with suspicion: its settings, and where the matrices of each layer are.

Reads adapter_config.json and adapter_model.safetensors and nothing else: pickles can run code.
Knows the key names of several transformers versions; knows nothing of the model that is adapted.
Shapes: r rank, N output features, K input features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gemma3vl_app.errors import LoadError
from gemma3vl_app.loading.checkpoint import in_memory_name, read_json
from gemma3vl_app.loading.shards import StoredTensor, read_headers

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
MAX_CONFIG_BYTES = 1 << 20  # target modules written out for every layer take some 50 KB
MAX_PATTERNS = 5_000
MAX_EXPRESSIONS, MAX_EXPRESSION_CHARS, MAX_REPEATS = 64, 200, 2
SHOWN = 80  # characters of a foreign name in a message

MERGE = (
    "Merge it into its model with peft's merge_and_unload, save that, and load the merged model."
)
# Settings that change what an adapter computes or where it acts, and what each would need
REFUSED = {
    "modules_to_save": "it replaces whole modules, such as the embeddings, which stay shared here",
    "trainable_token_indices": "it changes embeddings, which stay shared here",
    "target_parameters": "only linear layers are adapted here",
    "layer_replication": "it changes the model's layers",
    "lora_bias": "biases are not adapted here",
    "alora_invocation_tokens": "it acts from certain tokens on only",
    "use_qalora": "it needs a form of quantisation of its own",
    "use_bdlora": "it needs several devices working as one",
    "arrow_config": "it mixes other adapters",
    "velora_config": "this way of adapting is not known here",
    "monteclora_config": "this way of adapting is not known here",
    "kasa_config": "it changes the model's own weights",
}
# Ways to begin training that leave the model's own weights as they are; pissa, olora, corda, loftq
# and others change them, so that such an adapter fits only a model changed in the same way.
HARMLESS_STARTS = ("gaussian", "eva", "orthogonal")

_KEY = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)"
    r"(?:\.default)?(?P<weight>\.weight)?$"
)
_SIGNS = re.compile(r"[\\^$*+?{}\[\]|()]")  # what only a regular expression has
_HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w.-]+$")
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class StoredLora:
    """The matrices of one adapted layer, not read yet: A (r, K), B (N, r), and DoRA's magnitude.

    `module` is the layer's name in transformers 5, if the adapter's model was of the same class.
    """

    module: str
    a: StoredTensor
    b: StoredTensor
    magnitude: StoredTensor | None
    scaling: float


@dataclass(frozen=True)
class StoredAdapter:
    """What an adapter's folder says; `base` is the hub id it names as its model, or empty."""

    name: str
    base: str
    layers: tuple[StoredLora, ...]


def read_adapter(name: str, folder: str | Path) -> StoredAdapter:
    """Read the settings and the headers of the adapter in `folder`; `name` is for messages.

    Raises `LoadError` for a folder that is no LoRA adapter, is damaged, or uses a setting that is
    not supported, by its name.
    """
    path = Path(folder).expanduser()
    _check_folder(name, path)
    config = _read_config(name, path)
    settings = _Settings.checked(name, config)
    tensors = read_headers([path / WEIGHTS_FILE], name)
    base = str(config.get("base_model_name_or_path") or "")
    return StoredAdapter(
        name=name,
        base=base if _HUB_ID.match(base) else "",
        layers=_layers(name, tensors, settings),
    )


def _check_folder(name: str, path: Path) -> None:
    """Raise `LoadError` unless `path` holds the two files; says what is there instead."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise LoadError(
            f"Adapter {name!r} was not loaded: {path.name[:SHOWN]!r} {what}. Give the folder that "
            f"holds {CONFIG_FILE}; an adapter on the hub has to be downloaded first."
        )
    if not (path / CONFIG_FILE).is_file():
        what = "holds a model, not an adapter" if (path / "config.json").is_file() else "is none"
        raise LoadError(
            f"Adapter {name!r} was not loaded: the folder {what} ({CONFIG_FILE} is missing). "
            "Give the folder that peft's save_pretrained wrote."
        )
    if not (path / WEIGHTS_FILE).is_file():
        if (path / PICKLE_FILE).exists():
            raise LoadError(
                f"Adapter {name!r} was not loaded: it holds only {PICKLE_FILE}, a pickle, which "
                "can run code and is not read. Save it again with a current peft: it writes "
                f"{WEIGHTS_FILE}."
            )
        raise LoadError(f"Adapter {name!r} lacks {WEIGHTS_FILE}. Copy or download it again.")


def _read_config(name: str, path: Path) -> dict[str, Any]:
    if (path / CONFIG_FILE).stat().st_size > MAX_CONFIG_BYTES:
        raise LoadError(f"{CONFIG_FILE} of {name!r} is too large to be one. Copy it again.")
    return read_json(path / CONFIG_FILE, name)


@dataclass(frozen=True)
class _Settings:
    """The checked settings that say how large each layer's share is."""

    name: str
    rank: int
    alpha: float
    ranks: Mapping[str, Any]
    alphas: Mapping[str, Any]
    rslora: bool
    dora: bool

    @staticmethod
    def checked(name: str, config: Mapping[str, Any]) -> _Settings:
        """Return the settings of adapter_config.json, or raise `LoadError` by name."""
        kind = config.get("peft_type")
        if kind != "LORA":
            raise LoadError(f"{name!r} is a {_shown(kind)} adapter; only LoRA is supported.")
        for field, why in REFUSED.items():
            if config.get(field):
                raise LoadError(f"Adapter {name!r} uses {field}: {why}. {MERGE}")
        if config.get("bias") not in (None, "none"):
            raise LoadError(
                f"Adapter {name!r} changes biases (bias={_shown(config['bias'])}). {MERGE}"
            )
        start = config.get("init_lora_weights", True)
        if isinstance(start, str) and start not in HARMLESS_STARTS:
            raise LoadError(
                f"Adapter {name!r} was started with {_shown(start)}, which changes the model's own "
                f"weights. Convert it to plain LoRA when saving (peft's "
                "path_initial_model_for_weight_conversion), and load that."
            )
        return _Settings(
            name=name,
            rank=_rank(name, "r", config.get("r")),
            alpha=_alpha(name, "lora_alpha", config.get("lora_alpha")),
            ranks=_patterns(name, "rank_pattern", config.get("rank_pattern")),
            alphas=_patterns(name, "alpha_pattern", config.get("alpha_pattern")),
            rslora=_flag(name, "use_rslora", config.get("use_rslora")),
            dora=_flag(name, "use_dora", config.get("use_dora")),
        )

    def of(self, module: str) -> tuple[int, float]:
        """Return the rank of a layer, named as in the file, and the factor of B @ A.

        alpha / r, or for rslora alpha / sqrt(r) (peft's `LoraLayer.update_layer`).
        """
        rank = _rank(self.name, "rank_pattern", _matching(self.ranks, module, self.rank))
        alpha = _alpha(self.name, "alpha_pattern", _matching(self.alphas, module, self.alpha))
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)


def _layers(
    name: str, tensors: Mapping[str, StoredTensor], settings: _Settings
) -> tuple[StoredLora, ...]:
    """Sort the file's tensors by layer; every layer needs A and B, and with DoRA a magnitude."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.match(key)
        is_vector = found is not None and found["part"] == "lora_magnitude_vector"
        if found is None or (not is_vector and not found["weight"]):
            raise LoadError(
                f"Adapter {name!r} holds {_shown(key)}, which is no part of a LoRA over linear "
                f"layers. {MERGE}"
            )
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < torch.float16.itemsize:
            raise LoadError(
                f"Adapter {name!r} holds {_shown(key)} in {tensor.dtype}. Save it in bf16."
            )
        mine = parts.setdefault(found["module"], {})
        if found["part"] in mine:
            raise LoadError(f"Adapter {name!r} holds {_shown(key)} twice. Save it again.")
        mine[found["part"]] = tensor
    if not parts:
        raise LoadError(f"Adapter {name!r} is empty: its file holds no layer. Save it again.")
    layers = [_layer(name, module, each, settings) for module, each in parts.items()]
    if len({layer.module for layer in layers}) != len(layers):
        raise LoadError(f"Adapter {name!r} holds a layer under old and new names. Save it again.")
    return tuple(layers)


def _layer(
    name: str, module: str, parts: Mapping[str, StoredTensor], settings: _Settings
) -> StoredLora:
    wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if settings.dora else set())
    if parts.keys() != wanted:
        problem, what = "lacks", sorted(wanted - parts.keys())
        if not what:
            problem, what = "holds an unexpected", sorted(parts.keys() - wanted)
        raise LoadError(
            f"Adapter {name!r} {problem} {what[0]} for {_shown(module)}. Save or copy it again."
        )
    inner = module.removeprefix(_PREFIX)
    rank, scaling = settings.of(inner)
    a, b, magnitude = parts["lora_A"], parts["lora_B"], parts.get("lora_magnitude_vector")
    if len(a.shape) != 2 or len(b.shape) != 2 or (a.shape[0], b.shape[1]) != (rank, rank):
        raise LoadError(
            f"Adapter {name!r}: {CONFIG_FILE} gives {_shown(inner)} the rank {rank}, but its "
            f"matrices are {_size(a)} and {_size(b)}. The two files do not belong together."
        )
    if magnitude is not None and magnitude.numel != b.shape[0]:
        raise LoadError(
            f"Adapter {name!r}: the magnitude of {_shown(inner)} is {_size(magnitude)} for "
            f"{b.shape[0]} outputs. Save or copy it again."
        )
    # `in_memory_name` looks at whole keys
    return StoredLora(
        in_memory_name(f"{inner}.weight").removesuffix(".weight"), a, b, magnitude, scaling
    )


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that a layer's name ends in, as peft finds it.

    peft reads each as a regular expression; most are plain names.
    """
    for pattern, value in patterns.items():
        if module == pattern or module.endswith(f".{pattern}"):
            return value
        if _SIGNS.search(pattern) and re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


def _patterns(name: str, field: str, value: Any) -> Mapping[str, Any]:
    """Check that a pattern map is one and is quickly matched, whoever wrote it."""
    patterns = {} if value is None else value
    if not isinstance(patterns, dict) or len(patterns) > MAX_PATTERNS:
        raise LoadError(f"{field} of {name!r} is no list of layers. Copy {CONFIG_FILE} again.")
    expressions = [pattern for pattern in patterns if _SIGNS.search(pattern)]
    if len(expressions) > MAX_EXPRESSIONS or not all(map(_is_quick, expressions)):
        raise LoadError(
            f"{field} of {name!r} holds expressions that are too involved. "
            "Write the layers' names instead."
        )
    return patterns


def _is_quick(expression: str) -> bool:
    """Whether it can be read, and cannot take for ever: few repeats, and none of a group."""
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError):
        return False
    repeats = len(re.findall(r"[*+{?]", expression))
    return (
        len(expression) <= MAX_EXPRESSION_CHARS
        and repeats <= MAX_REPEATS
        and not re.search(r"\)[*+{?]", expression)
    )


def _rank(name: str, field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LoadError(f"{field} of {name!r} is {_shown(value)}; it must be a number above 0.")
    return value


def _alpha(name: str, field: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < 1e9:
        raise LoadError(f"{field} of {name!r} is {_shown(value)}; it must be a number.")
    return float(value)


def _flag(name: str, field: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise LoadError(f"{field} of {name!r} is {_shown(value)}; it must be true or false.")
    return bool(value)


def _size(tensor: StoredTensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _shown(value: Any) -> str:
    return ascii(value if not isinstance(value, str) else value[:SHOWN])[: SHOWN + 2]
