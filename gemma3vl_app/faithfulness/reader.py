"""What transformers' own model makes of a prompt: the reference, with nothing of ours in between.

The weights come through our loader, in the form that was asked for; modules, masks and attention
are transformers'. The whole prompt goes through in one pass, nothing is cached. Shapes: L tokens of
prompt and answer, n compared positions, T soft tokens, D width, V vocabulary, S picture side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Gemma3ForConditionalGeneration, GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from gemma3vl_app import hardware
from gemma3vl_app.errors import VerificationError
from gemma3vl_app.faithfulness.prompts import Prompt
from gemma3vl_app.faithfulness.results import Compared
from gemma3vl_app.generation import Progress
from gemma3vl_app.loading.assembly import arithmetic_of
from gemma3vl_app.loading.loader import LoadedModel, load_model
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.pixels import pixels
from gemma3vl_app.prompting.prepare import prepare
from gemma3vl_app.prompting.prompt import ImageInput, PreparedPrompt
from gemma3vl_app.prompting.tokenizer import TextTokenizer

ANSWER_TOKENS = 16  # of the reference's greedy answer
MOST_TOKENS = 8192  # of a prompt: transformers' mask has a cell for each two of them
MOST_POSITIONS = 128  # of a prompt: one row of logits takes 1 MB
MOST_PATCHES = 64  # of a picture, whose vectors are kept from each layer of the tower


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """What a model computed: logits (n, V) at `positions` of a prompt with an answer behind it.

    `features` are those of the prompt's pictures and crops (T, D), by key. `layers` holds each
    part's output by module name at the same positions (n, D), and of the tower at some patches of
    pictures that were new in this prompt; empty unless asked for.
    """

    prompt: PreparedPrompt
    answer_ids: tuple[int, ...]
    positions: tuple[int, ...]
    logits: torch.Tensor
    features: dict[bytes, torch.Tensor]
    layers: dict[str, torch.Tensor]

    @property
    def ids(self) -> list[int]:
        """The ids of prompt and answer."""
        return [*self.prompt.ids.tolist(), *self.answer_ids]


def load_reference(
    source: str, *, weights: str, revision: str | None, progress: Callable[[Progress], None] | None
) -> LoadedModel:
    """Load a model as transformers computes it, without anything that is only there for speed."""
    # What is loaded for training has no fused norms and no order of weights of our own.
    return load_model(
        source, weights=weights, revision=revision, progress=progress, for_training=True
    )


class Reader:
    """Reads prompts with a loaded model, which nothing else may use meanwhile."""

    def __init__(self, loaded: LoadedModel, known: TextTokenizer | None = None) -> None:
        """Take the model; `known` is used as its tokenizer where it is of an equal file."""
        self.model: Any = loaded.model  # transformers leaves much unannotated
        self.tokenizer = _tokenizer(loaded.tokenizer_file, known)
        self.format = PromptFormat.from_config(loaded.config, loaded.preprocessor, self.tokenizer)
        self._stop_ids = loaded.stop_ids | self.format.stop_ids
        self._seen: dict[bytes, torch.Tensor] = {}  # features (T, D) by picture key

    @property
    def sees(self) -> bool:
        """Whether the model takes pictures."""
        return isinstance(self.model, Gemma3ForConditionalGeneration)

    @property
    def rows(self) -> int:
        """Columns of the logits: V."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def window_tokens(self) -> int:
        """How far the sliding layers look back."""
        return int(self.model.config.get_text_config().sliding_window)

    def take_back(self) -> None:
        """Take the model back from an engine."""
        attention = "sdpa"
        self.model.set_attn_implementation({"text_config": attention} if self.sees else attention)

    def prepare(self, prompt: Prompt) -> PreparedPrompt:
        """Return a prompt's tokens and pictures, as this model is given them.

        Raises `VerificationError` for one that is too long to be read in one pass.
        """
        prepared = prepare(prompt.conversation, self.tokenizer, self.format)
        if len(prepared) > MOST_TOKENS:
            raise VerificationError(
                f"{prompt.name!r} takes {len(prepared):,} tokens; at most {MOST_TOKENS:,} are read "
                "in one pass. Use a shorter prompt."
            )
        return prepared

    @torch.inference_mode()
    def read(
        self,
        prompt: PreparedPrompt,
        answer_ids: Sequence[int] | None = None,
        *,
        deep: bool = False,
    ) -> Reading:
        """Read a prompt and an answer in one pass; the answer is the greedy one unless given."""
        watch = _Watch(self.model, self._tower) if deep else None
        features = {image.key: self._features(image, watch) for image in prompt.images}
        pictures = [features[image.key] for image in prompt.images]
        if answer_ids is None:
            answer_ids = self._greedy(prompt, pictures)
        positions = _positions(prompt, len(answer_ids))
        ids = torch.tensor([[*prompt.ids.tolist(), *answer_ids]])
        wanted = torch.tensor(positions)
        with self._given(pictures), _watching(watch, wanted):
            output = self.model(
                **self._inputs(prompt, ids, pictures), use_cache=False, logits_to_keep=wanted
            )
        return Reading(
            prompt=prompt,
            answer_ids=tuple(answer_ids),
            positions=tuple(positions),
            logits=output.logits[0].float().cpu(),
            features={key: each.float().cpu() for key, each in features.items()},
            layers=watch.outputs if watch else {},
        )

    def _greedy(self, prompt: PreparedPrompt, pictures: list[torch.Tensor]) -> list[int]:
        ids = torch.tensor(prompt.ids)[None]
        make_settings: Any = GenerationConfig  # transformers leaves it unannotated
        settings = make_settings(
            do_sample=False,
            max_new_tokens=ANSWER_TOKENS,
            eos_token_id=sorted(self._stop_ids),
            pad_token_id=0,
        )
        with self._given(pictures):
            written = self.model.generate(
                **self._inputs(prompt, ids, pictures), generation_config=settings
            )
        answer: list[int] = written[0, len(prompt) :].tolist()
        stop = next((at for at, id in enumerate(answer) if id in self._stop_ids), len(answer))
        return answer[:stop]

    def _inputs(
        self, prompt: PreparedPrompt, ids: torch.Tensor, pictures: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        device = self.model.get_input_embeddings().weight.device
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.sees:
            types = torch.zeros_like(ids)
            types[0, : len(prompt)] = torch.tensor(np.array(prompt.token_types))
            inputs["token_type_ids"] = types
        if pictures:
            # Their features are there already: transformers only has to hear of pictures.
            inputs["pixel_values"] = torch.zeros(len(pictures), 1)
        return {name: each.to(device) for name, each in inputs.items()}

    def _features(self, image: ImageInput, watch: _Watch | None) -> torch.Tensor:
        """Return a picture's features (T, D): by tower and projector, each picture once."""
        if image.key not in self._seen:
            shown = torch.from_numpy(pixels(image, self.format))[None]  # (1, 3, S, S)
            parameter = next(self._tower.parameters())
            dtype = arithmetic_of(self.model)
            with _watching_tower(watch):
                output = self.model.model.get_image_features(shown.to(parameter.device, dtype))
            self._seen[image.key] = output.pooler_output[0]
        return self._seen[image.key]

    @property
    def _tower(self) -> Any:
        return self.model.model.vision_tower if self.sees else None

    @contextmanager
    def _given(self, pictures: list[torch.Tensor]) -> Iterator[None]:
        """Let the model take these features (T, D) for the pictures that it hears of.

        A tower takes minutes a picture on some processors, and each is asked about several times.
        """
        if not pictures:
            yield
            return
        known = BaseModelOutputWithPooling(pooler_output=torch.stack(pictures))

        def features(pixel_values: torch.Tensor, **unused: Any) -> BaseModelOutputWithPooling:
            return known  # `generate` goes by the name of the argument

        core = self.model.model
        core.get_image_features = features
        try:
            yield
        finally:
            del core.get_image_features


class _Watch:
    """Notes what leaves each layer of a model, at some positions."""

    def __init__(self, model: Any, tower: Any) -> None:
        modules = dict(model.named_modules())
        names = {id(module): name for name, module in modules.items()}
        core = model.model
        text = getattr(core, "language_model", core)
        self.text = {names[id(m)]: m for m in (text.embed_tokens, *text.layers, text.norm)}
        layers = [] if tower is None else [*tower.encoder.layers, tower.post_layernorm]
        self.tower = {names[id(module)]: module for module in layers}
        self._parts: dict[str, list[torch.Tensor]] = {}

    @property
    def outputs(self) -> dict[str, torch.Tensor]:
        """What was noted, by module name (n, D)."""
        return {name: torch.cat(parts) for name, parts in self._parts.items()}

    @contextmanager
    def on(self, modules: dict[str, Any], positions: torch.Tensor | None) -> Iterator[None]:
        """Note the outputs (1, n, D) of `modules` at `positions`; None: spread over all."""

        def keep(name: str, output: Any) -> None:
            vectors = (output[0] if isinstance(output, tuple) else output)[0]  # (n, D)
            at = _spread(len(vectors), MOST_PATCHES) if positions is None else positions.tolist()
            self._parts.setdefault(name, []).append(vectors[at].float().cpu())

        hooks = [
            module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            for name, module in modules.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def _watching(watch: _Watch | None, positions: torch.Tensor) -> Iterator[None]:
    if watch is None:
        yield
        return
    with watch.on(watch.text, positions):
        yield


@contextmanager
def _watching_tower(watch: _Watch | None) -> Iterator[None]:
    if watch is None:
        yield
        return
    with watch.on(watch.tower, None):
        yield


def compared(source: str, loaded: LoadedModel) -> Compared:
    """Say which model was loaded, and how."""
    plan = loaded.plan
    return Compared(
        source=source,
        name=loaded.name,
        revision=loaded.revision,
        weights=plan.weights,
        arithmetic=hardware.arithmetic(plan.dtype, plan.device_map.values()),
    )


def _tokenizer(file: Path, known: TextTokenizer | None) -> TextTokenizer:
    """Return the tokenizer of a file, which takes seconds to read if it is not known."""
    if known is not None and file.is_file():
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() == known.sha256:
                return known
    return TextTokenizer.from_file(file)


def _positions(prompt: PreparedPrompt, answer_tokens: int) -> list[int]:
    """Return what is compared: the answer, and text of the prompt, spread over it where it is long.

    Within a picture nothing is ever predicted.
    """
    text = np.flatnonzero(prompt.token_types == 0).tolist()
    kept = [text[at] for at in _spread(len(text), MOST_POSITIONS)]
    return [*kept, *range(len(prompt), len(prompt) + answer_tokens)]


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, evenly spread, the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(at) for at in np.linspace(0, count - 1, most)})
