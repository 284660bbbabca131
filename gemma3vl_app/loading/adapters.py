"""LoRA adapters in a live model: several by name, one active at a time, switched at no cost.

peft puts its layers around the model's own (`inject_adapter_in_model`); all of them share one list
of what is active, so switching changes one list whatever the model's size. Knows nothing of
requests. Shapes: r rank, N output features, K input features.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from gemma3vl_app.errors import EngineError, LoadError
from gemma3vl_app.loading import int4
from gemma3vl_app.loading.adapter_files import SHOWN, StoredAdapter, StoredLora, read_adapter
from gemma3vl_app.loading.assembly import Model, arithmetic_of
from gemma3vl_app.loading.int4 import Int4Linear
from gemma3vl_app.loading.int8 import Int8Linear

RESERVED = "base"  # surfaces call the model without an adapter so
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_NORM_ROWS = 2048  # output features at once, and columns of a packed matrix: bounds memory
_VISION_MODEL = "model.language_model."


@dataclass(frozen=True)
class PreparedAdapter:
    """An adapter's weights in the model's arithmetic, ready to be put in: see `Adapters.prepare`.

    By layer: A (r, K), B (N, r), the factor of their product, and for DoRA what each output
    feature is multiplied by (N,).
    """

    name: str
    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor, float, torch.Tensor | None]]

    @cached_property
    def digest(self) -> bytes:
        """A digest of its weights and where they go, the same in every process."""
        digest = hashlib.sha256()
        for module, (a, b, scaling, factor) in sorted(self.layers.items()):
            digest.update(repr((module, tuple(a.shape), scaling, factor is None)).encode())
            for tensor in (a, b) if factor is None else (a, b, factor):
                numbers: Any = tensor.detach().to("cpu").contiguous().view(torch.uint8).numpy()
                digest.update(numbers)
        return digest.digest()


class Adapters:
    """The adapters of one model.

    `prepare` may run in any thread; `put_in`, `remove` and `use` only where the model is not
    computing. A name that is removed and added again gets another key, so that nothing computed
    with the old weights is taken for the new.
    """

    def __init__(self, model: Model) -> None:
        """Adapt `model`, which is changed only when the first adapter is put in."""
        self._model: Model | None = model
        # Looked up once: `prepare` must not walk over a model that `put_in` is changing.
        self._linears = _linears(model)
        self._lock = threading.Lock()  # guards names and keys
        self._keys: dict[str, str] = {}
        self._modules: dict[str, tuple[str, ...]] = {}  # adapted layers, by key
        self._put_in: dict[str, PreparedAdapter] = {}  # by key; the model shares their tensors
        self._active: list[str] = []  # shared with every layer of peft's
        self._added = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order they were added."""
        with self._lock:
            return tuple(self._keys)

    def key(self, name: str) -> str:
        """Return what `use` takes for the adapter `name`; raises `KeyError` for an unknown one."""
        with self._lock:
            return self._keys[name]

    def digest(self, key: str) -> bytes:
        """Return what tells the weights of `key` from all others, in any process, or `KeyError`."""
        with self._lock:
            adapter = self._put_in[key]
        return adapter.digest

    def add(self, name: str, folder: str | Path) -> None:
        """Read the adapter in `folder` and put it in under `name`; raises `LoadError`."""
        self.put_in(self.prepare(name, folder))

    def prepare(self, name: str, folder: str | Path) -> PreparedAdapter:
        """Read the adapter in `folder` and check it against the model, changing nothing.

        Raises `LoadError` for a bad or known name, a bad folder, and an adapter of another model.
        """
        self._check_name(name)
        stored = read_adapter(name, folder)
        model, linears = self._model, self._linears
        if model is None:
            raise EngineError("The model has been closed. Load it again.")
        targets = {_target(stored, layer, linears): layer for layer in stored.layers}
        if len(targets) != len(stored.layers):
            raise LoadError(f"Adapter {name!r} holds a layer under two names. Save it again.")
        for module, layer in targets.items():
            _check_shape(stored, module, layer, linears[module])
        dtype = arithmetic_of(model)
        layers = {
            module: _read(name, module, layer, linears[module], dtype)
            for module, layer in targets.items()
        }
        return PreparedAdapter(name, layers)

    def put_in(self, adapter: PreparedAdapter) -> None:
        """Put a prepared adapter into the model; raises `LoadError` if the name is taken by now."""
        self._check_name(adapter.name)
        if self._model is None:
            raise EngineError("The model has been closed. Load it again.")
        key = f"adapter{self._added}"
        self._added += 1
        try:
            with torch.inference_mode(False):  # ordinary tensors, so that others may take gradients
                self._inject(self._model, key, adapter)
        except BaseException:
            self._take_out(key, tuple(adapter.layers))
            raise
        with self._lock:
            self._modules[key] = tuple(adapter.layers)
            self._put_in[key] = adapter
            self._keys[adapter.name] = key

    def remove(self, name: str) -> None:
        """Take an adapter out and free its weights; raises `LoadError` for an unknown name."""
        with self._lock:
            key = self._keys.pop(name, None)
            if key is None:
                raise LoadError(f"There is no adapter {name!r} to remove.")
            modules = self._modules.pop(key)
            del self._put_in[key]
        self.use(None)
        self._take_out(key, modules)

    def use(self, key: str | None) -> None:
        """Compute with the adapter of `key` from now on, or with the model alone (None).

        Raises `EngineError` for an adapter that has been removed.
        """
        if key is None:
            self._active.clear()
        elif key in self._modules:
            self._active[:] = (key,)
        else:
            raise EngineError(
                "The adapter of this request was removed. Choose another one and ask again."
            )

    @contextmanager
    def active(self, name: str | None) -> Iterator[None]:
        """Compute with an adapter, by name, inside a `with` block."""
        before = self._active[:]
        self.use(None if name is None else self.key(name))
        try:
            yield
        finally:
            self._active[:] = before

    def forget_model(self) -> None:
        """Let go of the model, which is being unloaded."""
        self._linears = {}
        self._model = None
        with self._lock:
            self._put_in.clear()

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name) or name == RESERVED:
            raise LoadError(
                f"An adapter cannot be called {ascii(name)[:SHOWN]}: use up to 64 letters, digits "
                f"and . _ - (not {RESERVED!r}, which means the model without an adapter)."
            )
        if name in self.names:
            raise LoadError(f"There is an adapter {name!r} already. Choose another name.")

    def _inject(self, model: Model, key: str, adapter: PreparedAdapter) -> None:
        """Let peft wrap the layers, then give it the weights."""
        # Here, not above: peft takes seconds to import, and most models have no adapters.
        from peft import LoraConfig, inject_adapter_in_model

        from gemma3vl_app.loading.dora import Dora

        ranks = {module: a.shape[0] for module, (a, _, _, _) in adapter.layers.items()}
        rank = max(ranks.values())
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            rank_pattern={re.escape(module): r for module, r in ranks.items() if r != rank},
            target_modules=list(adapter.layers),
            init_lora_weights=False,
        )
        inject_adapter_in_model(config, model, key, low_cpu_mem_usage=True)
        del model.peft_config  # nobody reads it, and peft warns of one it finds
        for module, (a, b, scaling, factor) in adapter.layers.items():
            layer: Any = model.get_submodule(module)
            layer.lora_A[key].weight = torch.nn.Parameter(a, requires_grad=False)
            layer.lora_B[key].weight = torch.nn.Parameter(b, requires_grad=False)
            layer.scaling[key] = scaling
            if factor is not None:
                layer.lora_variant[key] = Dora(factor)
        for module in {*adapter.layers, *chain.from_iterable(self._modules.values())}:
            wrapped: Any = model.get_submodule(module)
            wrapped._active_adapter = self._active  # the list itself: see `use`

    def _take_out(self, key: str, modules: tuple[str, ...]) -> None:
        """Remove an adapter's weights; layers that no adapter needs are the model's own again."""
        if self._model is None:
            return
        for module in modules:
            layer: Any = self._model.get_submodule(module)
            if not hasattr(layer, "lora_A"):  # no layer of peft's
                continue
            layer._active_adapter = self._active
            layer.delete_adapter(key)
            if not layer.lora_A:
                self._model.set_submodule(module, layer.get_base_layer())


def _linears(model: Model) -> dict[str, torch.nn.Module]:
    """Return every module that can be adapted, and those that people try to, by name."""
    found: dict[str, torch.nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if hasattr(module, "lora_A"):  # a layer of peft's, around the model's own
            inside = (f"{name}.",)
            wrapped: Any = module
            module = wrapped.get_base_layer()
        found[name] = module
    return found


def _target(
    stored: StoredAdapter, layer: StoredLora, modules: Mapping[str, torch.nn.Module]
) -> str:
    """Return the model's name of an adapted layer.

    Adapters of the text-only class fit the language model of a vision-language model, and the
    other way round.
    """
    name = layer.module
    has_vision = f"{_VISION_MODEL}norm" in modules
    if name not in modules and has_vision and name.startswith("model."):
        name = _VISION_MODEL + name.removeprefix("model.")
    elif name not in modules and not has_vision and name.startswith(_VISION_MODEL):
        name = "model." + name.removeprefix(_VISION_MODEL)
    if name not in modules:
        shown = ascii(layer.module[:SHOWN])
        if not has_vision and "vision" in layer.module:
            raise LoadError(
                f"Adapter {stored.name!r} adapts the vision tower ({shown}), but this model reads "
                f"no pictures. {_load_its_model(stored)}"
            )
        raise LoadError(
            f"Adapter {stored.name!r} adapts {shown}, which this model does not have. "
            f"{_load_its_model(stored)}"
        )
    module = modules[name]
    if name == "lm_head" or not isinstance(module, torch.nn.Linear):
        what = "the output matrix" if name == "lm_head" else f"a {type(module).__name__}"
        raise LoadError(
            f"Adapter {stored.name!r} adapts {layer.module[:SHOWN]!a}, {what}; only linear "
            "layers inside the model are supported (the output matrix is shared with the "
            "embeddings). Merge it with peft's merge_and_unload and load the merged model."
        )
    return name


def _check_shape(
    stored: StoredAdapter, module: str, layer: StoredLora, linear: torch.nn.Module
) -> None:
    """Raise `LoadError` for a layer of another size."""
    sizes: Any = linear  # Linear, Linear4bit and Int8Linear alike
    expected = (int(sizes.out_features), int(sizes.in_features))
    given = (layer.b.shape[0], layer.a.shape[1])
    if given != expected:
        raise LoadError(
            f"Adapter {stored.name!r} was made for another size: its {module} is "
            f"{given[0]} x {given[1]}, this model's {expected[0]} x {expected[1]}. "
            f"{_load_its_model(stored)}"
        )


def _load_its_model(stored: StoredAdapter) -> str:
    return f"Load the model it was trained on{f', {stored.base}' if stored.base else ''}."


@torch.inference_mode(False)
@torch.no_grad()
def _read(
    name: str, module: str, layer: StoredLora, linear: Any, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, float, torch.Tensor | None]:
    """Read a layer's matrices as copies (the file may be overwritten by the next training)."""
    device = linear.weight.device
    stored = [layer.a, layer.b] + ([layer.magnitude] if layer.magnitude is not None else [])
    tensors = [each.read().to(device, torch.float32, copy=True) for each in stored]
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise LoadError(
            f"Adapter {name!r} holds values that are not numbers, in {module}: its training went "
            "wrong, or the file is damaged."
        )
    a, b = tensors[:2]
    factor = None
    if layer.magnitude is not None:
        norms = _row_norms(linear, a, b * layer.scaling, dtype)  # (N,)
        factor = (tensors[2].reshape(-1) / norms).to(dtype)
    return a.to(dtype), b.to(dtype), layer.scaling, factor


def _row_norms(
    linear: torch.nn.Linear, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return the norm of each row of W + B A in fp32, (N,), for A (r, K) and B (N, r)."""
    weight = _dense(linear, dtype)  # (N, K)
    rows = range(0, weight.shape[0], _NORM_ROWS)
    parts = [slice(first, first + _NORM_ROWS) for first in rows]
    norms = [(weight[part].float() + b[part] @ a).norm(dim=1) for part in parts]
    return torch.cat(norms).clamp(min=torch.finfo(torch.float32).tiny)


def _dense(linear: torch.nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """Return a layer's matrix (N, K) in numbers, however it is stored."""
    if isinstance(linear, Int8Linear):
        return linear.weight.to(dtype) * linear.scale[:, None].to(dtype)
    if linear.weight.is_floating_point():
        return linear.weight
    if isinstance(linear, Int4Linear):
        return int4.dequantise({"": linear.weight, int4.SCALES: linear.scales_zeros}, dtype)
    # Packed in 4 bits, in one of several orders: what the layer makes of each unit vector.
    columns = []
    for first in range(0, linear.in_features, _NORM_ROWS):
        count = min(_NORM_ROWS, linear.in_features - first)
        units = torch.zeros(count, linear.in_features, dtype=dtype, device=linear.weight.device)
        units[torch.arange(count), first + torch.arange(count)] = 1
        columns.append(linear(units))  # (count, N)
    return torch.cat(columns).T
