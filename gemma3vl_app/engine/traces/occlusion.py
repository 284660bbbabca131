"""How likely an answer stays while regions of a picture are hidden, several regions in one pass.

Shapes: B variants in a pass, n new tokens, T soft tokens, D model width, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from gemma3vl_app.engine.aside import Aside
from gemma3vl_app.engine.attention import picture_numbers
from gemma3vl_app.engine.model import TextModel
from gemma3vl_app.engine.traces.tracing import Pace, Tools, Tracing, numbers
from gemma3vl_app.errors import ConversationError, MemoryLimitError
from gemma3vl_app.generation import Box
from gemma3vl_app.prompting.prompt import ImageInput
from gemma3vl_app.traces import Floats, Occlusion, TracedOcclusion

_PASS_TOKENS = 2048  # tokens of all variants in one pass: bounds the memory of activations
_PASS_PATCHES = 4096  # patches of all pictures that go through the tower at once
_PASS_KEY_BYTES = 1 << 28  # of the keys of one layer, which each variant copies
_MAX_BYTES = 2 << 30  # of one layer's activations over one variant


def known_tokens(tracing: Tracing, asked: Occlusion) -> int:
    """Return how much of the prompt is to be computed before: what lies before the picture."""
    tracing.first_picture()
    places = [place.start for place in tracing.places if place.picture == asked.picture]
    if not places:
        count = len({place.picture for place in tracing.places})
        raise ConversationError(
            f"There is no picture {asked.picture}: the conversation has {count}, numbered from 0."
        )
    return min(places)


def trace(
    tracing: Tracing, asked: Occlusion, tools: Tools
) -> Generator[None, None, TracedOcclusion]:
    """Return the log-probabilities with nothing hidden, then with each region hidden."""
    rows = tracing.rows(asked.tokens)
    prompt, start = tracing.prompt, tools.kv.length
    stop = max(rows) + 1
    images = tools.pictures(prompt)
    of_picture = {place.start for place in tracing.places if place.picture == asked.picture}

    # 1) What stays the same in every variant: other pictures' features, the tokens
    plain: dict[int, torch.Tensor] = {}  # by the position of the first soft token
    shown: dict[int, Floats] = {}
    for image in images:
        if image.start in of_picture:
            shown[image.start] = tools.prefill.pixels_of(image)
        plain[image.start] = yield from tools.prefill.features_of(tools.sequence, image)
        yield

    # 2) Variants, a few in each pass; the first hides nothing
    variants: list[Box | None] = [None, *asked.regions]
    size = _variants_in_a_pass(tools.text_model, stop, stop - start)
    pace = tools.pace(len(variants))
    said = []
    for first in range(0, len(variants), size):
        part = variants[first : first + size]
        features: dict[int, torch.Tensor] = {}  # (B, T, D)
        for image in images:
            if image.start in shown:
                features[image.start] = yield from _hidden_features(
                    tools, image, shown[image.start], part, plain[image.start], pace
                )
            else:
                features[image.start] = plain[image.start].expand(
                    len(part), *plain[image.start].shape
                )
        said.append((yield from _logprobs(tracing, asked, tools, features, len(part), stop)))
        for _ in part:
            if pace.step(said[-1]):
                yield
    logprobs = numbers(torch.cat(said))  # (1 + regions, tokens)
    return TracedOcclusion(
        tokens=tracing.answer, places=tracing.places, shown=logprobs[0], hidden=logprobs[1:]
    )


def _variants_in_a_pass(model: TextModel, length: int, tokens: int) -> int:
    """Return how many variants run together, each `tokens` long after what is known of `length`."""
    if tokens * model.activation_bytes > _MAX_BYTES:
        raise MemoryLimitError(
            f"Hiding parts of a picture computes the {tokens:,} tokens after it once for each, and "
            "that takes too much memory. Ask about it in a shorter conversation."
        )
    copies = max(1, length * model.key_bytes)
    return max(1, min(_PASS_TOKENS // tokens, _PASS_KEY_BYTES // copies))


def _hidden_features(
    tools: Tools,
    image: ImageInput,
    pixels: Floats,
    regions: list[Box | None],
    plain: torch.Tensor,
    pace: Pace,
) -> Generator[None, None, torch.Tensor]:
    """Return features (B, T, D) of a picture or crop with each region hidden in turn."""
    vision = tools.prefill.vision
    features = plain.expand(len(regions), *plain.shape).clone()
    changed = [(row, hidden(pixels, image, region)) for row, region in enumerate(regions)]
    reached = [(row, each) for row, each in changed if each is not None]
    at_once = max(1, _PASS_PATCHES // vision.patches)
    for first in range(0, len(reached), at_once):
        part = reached[first : first + at_once]
        stacked = torch.from_numpy(np.stack([each for _, each in part]))  # (b, 3, S, S)
        encoded = yield from pace.telling(vision.encode_all(stacked))
        features[[row for row, _ in part]] = encoded
        yield
    return features


def hidden(pixels: Floats, image: ImageInput, region: Box | None) -> Floats | None:
    """Return pixels (3, S, S) with `region` in their mean colour; None where nothing is hidden.

    The mean is that of what is shown: the picture's, or the crop's. `region` is in pixels of the
    upright picture; the square shows the picture, or its crop.
    """
    if region is None:
        return None
    left, top, right, bottom = image.box or (0, 0, image.picture.width, image.picture.height)
    side = pixels.shape[1]
    across, down = side / (right - left), side / (bottom - top)
    x0, x1 = (round((edge - left) * across) for edge in (region[0], region[2]))
    y0, y1 = (round((edge - top) * down) for edge in (region[1], region[3]))
    x0, x1, y0, y1 = (min(max(edge, 0), side) for edge in (x0, x1, y0, y1))
    if x0 >= x1 or y0 >= y1:
        return None
    painted = pixels.copy()
    painted[:, y0:y1, x0:x1] = pixels.mean((1, 2))[:, None, None]
    return painted


def _logprobs(
    tracing: Tracing,
    asked: Occlusion,
    tools: Tools,
    features: dict[int, torch.Tensor],
    count: int,
    stop: int,
) -> Generator[None, None, torch.Tensor]:
    """Run `count` variants from the picture on; returns log-probabilities (B, tokens)."""
    prompt, start, model = tracing.prompt, tools.kv.length, tools.text_model
    ids = torch.tensor(prompt.ids[start:stop]).expand(count, stop - start)  # (B, n)
    vectors = model.embed(ids)
    for at, each in features.items():
        vectors[:, at - start : at - start + each.shape[1]] = each.to(vectors)
    aside = Aside(tools.kv, count, stop - start, picture_numbers(prompt, start, stop))
    vectors = yield from tools.through(vectors, aside)
    columns = [row - start for row in tracing.rows(asked.tokens)]
    ends = model.norm(vectors[:, columns])  # (B, tokens, D)
    said = []
    for column, token in enumerate(asked.tokens):
        logits = model.logits(ends[:, column])  # (B, V)
        said.append(logits.log_softmax(-1)[:, tracing.answer_ids[token]])
    return torch.stack(said, dim=1)
