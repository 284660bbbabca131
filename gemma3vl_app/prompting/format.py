"""The numbers by which one checkpoint's prompts are built: control ids, image size, crop settings.

Everything comes from the checkpoint's own `config.json` and `preprocessor_config.json`; what the
latter leaves open has the published processor's value, kept as data in `processor_defaults.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from gemma3vl_app.errors import LoadError
from gemma3vl_app.prompting.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How prompts for one checkpoint are built.

    A text-only checkpoint has `image_tokens` 0, and -1 for `boi`, `eoi` and `soft`.

    Attributes:
        bos, start_of_turn, end_of_turn: control ids of every prompt.
        boi, eoi, soft: ids of `<start_of_image>`, `<end_of_image>` and of the placeholders between
        them. stop_ids: ids that end an answer. image_tokens: placeholders per picture or crop.
        image_size: side, in pixels, of the square that a picture is resized to. resample: PIL's
        number of the resize filter. rescale_factor, mean, std: pixel = (byte * rescale_factor -
        mean) / std, per channel. min_crop_size: pixels; no crop has a shorter side. max_crops: most
        crops of one picture. min_crop_ratio: long side / short side from which a picture is cropped
        at all.
    """

    bos: int
    start_of_turn: int
    end_of_turn: int
    stop_ids: frozenset[int]
    boi: int = -1
    eoi: int = -1
    soft: int = -1
    image_tokens: int = 0
    image_size: int = 0
    resample: int = 0
    rescale_factor: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    min_crop_size: int = 0
    max_crops: int = 0
    min_crop_ratio: float = 0.0

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that only the template may put into a prompt."""
        turn_ids = {self.bos, self.start_of_turn, self.end_of_turn, *self.stop_ids}
        return frozenset(turn_ids | ({self.boi, self.eoi, self.soft} - {-1}))

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        preprocessor: Mapping[str, Any] | None,
        tokenizer: TextTokenizer,
    ) -> PromptFormat:
        """Read the format of a checkpoint.

        `config` is its `config.json` (the hub's or transformers 5's), `preprocessor` its
        `preprocessor_config.json` (or `processor_config.json`) where it has one. Raises `LoadError`
        when a needed entry is missing, or when config and tokenizer do not belong together.
        """
        text_config = config.get("text_config") or config
        end_of_turn = _control_id(tokenizer, "<end_of_turn>", None)
        stop_ids = {
            _control_id(tokenizer, "<eos>", None),
            end_of_turn,
            *_as_ids(config.get("eos_token_id")),
            *_as_ids(text_config.get("eos_token_id")),
        }
        turns: dict[str, Any] = {
            "bos": _control_id(tokenizer, "<bos>", text_config.get("bos_token_id")),
            "start_of_turn": _control_id(tokenizer, "<start_of_turn>", None),
            "end_of_turn": end_of_turn,
        }
        if not config.get("vision_config"):  # model_type gemma3_text
            return cls(**turns, stop_ids=frozenset(stop_ids))
        images = _image_settings(config, preprocessor or {}, tokenizer)
        return cls(**turns, stop_ids=frozenset(stop_ids), **images)


def _image_settings(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], tokenizer: TextTokenizer
) -> dict[str, Any]:
    # 1) Ids: `image_token_index` is the hub's spelling, `image_token_id` transformers'.
    ids = {
        field: _control_id(tokenizer, token, config.get(f"{key}_index", config.get(f"{key}_id")))
        for field, token, key in (
            ("boi", "<start_of_image>", "boi_token"),
            ("eoi", "<end_of_image>", "eoi_token"),
            ("soft", "<image_soft_token>", "image_token"),
        )
    }
    # 2) Sizes: fixed by the weights, so the config rules.
    image_size = _needed_int(config["vision_config"], "image_size")
    image_tokens = _needed_int(config, "mm_tokens_per_image")
    # 3) The processor's settings over the published ones; null means "not set".
    given = preprocessor.get("image_processor") or preprocessor
    settings = _published_defaults()
    settings.update({key: value for key, value in given.items() if value is not None})
    size = settings.get("size", {"height": image_size, "width": image_size})
    if size != {"height": image_size, "width": image_size}:
        raise LoadError(
            f"preprocessor_config.json resizes pictures to {size}, but config.json says the "
            f"model sees {image_size} x {image_size} pixels. Use the two files of one checkpoint."
        )
    return {
        **ids,
        "image_tokens": image_tokens,
        "image_size": image_size,
        "resample": int(settings["resample"]),
        "rescale_factor": float(settings["rescale_factor"]),
        "mean": tuple(float(value) for value in settings["image_mean"]),
        "std": tuple(float(value) for value in settings["image_std"]),
        "min_crop_size": int(settings["pan_and_scan_min_crop_size"]),
        "max_crops": int(settings["pan_and_scan_max_num_crops"]),
        "min_crop_ratio": float(settings["pan_and_scan_min_ratio_to_activate"]),
    }


def _published_defaults() -> dict[str, Any]:
    text = resources.files("gemma3vl_app.prompting").joinpath("processor_defaults.json").read_text()
    return dict(json.loads(text))


def _control_id(tokenizer: TextTokenizer, token: str, configured: int | None) -> int:
    """Return the id of a control token; config and tokenizer must agree where both know it."""
    found = tokenizer.id_of(token)
    known = configured if found is None else found
    if known is None:
        raise LoadError(
            f"Neither the tokenizer nor config.json knows {token}. "
            "Use the tokenizer.json that belongs to this Gemma 3 checkpoint."
        )
    if None not in (found, configured) and found != configured:
        raise LoadError(
            f"config.json says {token} is token {configured}, the tokenizer says {found}. "
            "Use the two files of one checkpoint."
        )
    return known


def _as_ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _needed_int(section: Mapping[str, Any], key: str) -> int:
    value = section.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise LoadError(
            f"config.json has no usable {key!r} (found {value!r}). "
            "Download the checkpoint's config.json again."
        )
    return value
