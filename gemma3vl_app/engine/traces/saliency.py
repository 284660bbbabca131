"""Gradient x input: at the projector's output, and through the tower to the pixels.

Backwards layer by layer, each from its own input: see `tape`. Shapes: n tokens, D model width, T
soft tokens, P patches, S side of the square in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial

import torch

from gemma3vl_app.engine.traces.tape import Tape
from gemma3vl_app.engine.traces.tracing import Pace, Tools, Tracing, numbers
from gemma3vl_app.traces import Floats, Saliency, TracedSaliency

_ROWS = 64  # of logits at once: one fp32 row takes about 1 MB


def known_tokens(tracing: Tracing, asked: Saliency) -> int:
    """Return how much of the prompt is to be computed before: what no picture reaches."""
    return tracing.first_picture()


def trace(tracing: Tracing, asked: Saliency, tools: Tools) -> Generator[None, None, TracedSaliency]:
    """Return the gradients that `asked` asks for, times their inputs."""
    rows = tracing.rows(asked.tokens)
    targets = [tracing.answer_ids[token] for token in asked.tokens]

    # 1) Up, then down through the text model
    steps = 2 * len(tools.text_model.windows)
    if asked.through_tower:
        steps += 2 * len(tools.prefill.vision.layers) * len(tools.pictures(tracing.prompt))
    pace = tools.pace(steps)
    tape = yield from Tape.record(tracing, max(rows), tools, pace)
    gradient = _of_logprobs(tape, tools, [row - tools.kv.length for row in rows], targets)
    yield
    for layer in reversed(range(len(tape))):
        through = partial(tape.run, layer)
        gradient = pulled_back(through, tape.inputs[layer], gradient)  # (1, n, D)
        if pace.step(gradient):
            yield

    # 2) What reached the pictures, and on through the tower
    soft_tokens: list[Floats] = []
    pixels: list[Floats] = []
    for image, features in tape.pictures:
        start = image.start - tools.kv.length
        reached = gradient[0, start : start + len(features)].to(features)  # (T, D)
        soft_tokens.append(numbers((reached.float() * features.float()).sum(-1)))
        if asked.through_tower:
            shown = torch.from_numpy(tools.prefill.pixels_of(image))[None]  # (1, 3, S, S)
            at_pixels = yield from _through_tower(tools, shown, reached[None], pace)
            pixels.append(numbers((at_pixels.float().cpu() * shown).sum(1)[0]))
    return TracedSaliency(
        tokens=tracing.answer,
        places=tracing.places,
        soft_tokens=tuple(soft_tokens),
        pixels=tuple(pixels),
    )


def pulled_back(
    function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """Return the gradient at `at` of `function`, given the gradient at what it returns.

    A unit of work of its own: no gradient mode outlives it, on a thread that others share.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = at.clone().requires_grad_()  # inference mode's tensors take no gradient
        value = function(leaf)
        (pulled,) = torch.autograd.grad(value, leaf, gradient.clone().to(value))
    return pulled


def _of_logprobs(tape: Tape, tools: Tools, rows: list[int], targets: list[int]) -> torch.Tensor:
    """Return the gradient (1, n, D) at the last layer's output of the targets' log-probability."""

    def summed(ids: list[int], vectors: torch.Tensor) -> torch.Tensor:
        logits = tools.text_model.logits(tools.text_model.norm(vectors))  # (rows, V)
        wanted = torch.tensor(ids, device=logits.device)[:, None]
        return logits.log_softmax(-1).gather(1, wanted).sum()

    gradient = torch.zeros_like(tape.top)
    for first in range(0, len(rows), _ROWS):
        part = rows[first : first + _ROWS]
        of = partial(summed, targets[first : first + _ROWS])
        at = tape.top[0, part]  # (rows, D)
        gradient[0].index_add_(
            0,
            torch.tensor(part, device=gradient.device),
            pulled_back(of, at, torch.ones((), device=at.device)),
        )
    return gradient


def _through_tower(
    tools: Tools, pixels: torch.Tensor, gradient: torch.Tensor, pace: Pace
) -> Generator[None, None, torch.Tensor]:
    """Pull a gradient at the features (1, T, D) back to pixels (1, 3, S, S)."""
    vision = tools.prefill.vision
    pixels = pixels.to(gradient.device)
    hidden, inputs = vision.embed(pixels), []  # (1, P, width)
    for layer in vision.layers:
        inputs.append(hidden)
        hidden = layer(hidden)
        if pace.step(hidden):
            yield
    gradient = pulled_back(vision.project, hidden, gradient)
    for layer, at in zip(reversed(vision.layers), reversed(inputs), strict=True):
        gradient = pulled_back(layer, at, gradient)
        if pace.step(gradient):
            yield
    return pulled_back(vision.embed, pixels, gradient)
