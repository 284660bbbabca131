"""A tiny random model twice: behind our engine, and as plain transformers to compare with."""

from collections.abc import Iterator

import pytest
import torch
from transformers import Gemma3ForConditionalGeneration

from gemma3vl_app.backends.local import LocalBackend, load
from gemma3vl_app.engine.engine import EngineLimits
from gemma3vl_app.loading import load_model
from tests.engine.reference import Reference


@pytest.fixture(scope="session")
def reference_model(tiny) -> Gemma3ForConditionalGeneration:
    """The tiny checkpoint through our loader, never touched by the engine."""
    model = load_model(tiny, weights="fp32").model
    model.set_attn_implementation("eager")
    return model


@pytest.fixture
def make_backend(tiny):
    """Make backends over the tiny checkpoint in fp32, closed when the test ends."""
    made: list[LocalBackend] = []

    def make(**limits) -> LocalBackend:
        made.append(load(tiny, weights="fp32", limits=EngineLimits(**limits)))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.fixture(scope="module")
def backend(tiny) -> Iterator[LocalBackend]:
    """One backend shared by the tests of a module; give each test its own session."""
    with load(tiny, weights="fp32") as shared:
        yield shared


@pytest.fixture
def reference(reference_model, backend) -> Reference:
    """The reference for answers of the shared backend."""
    return Reference(reference_model, backend)


@pytest.fixture
def scripted_logits(make_backend, monkeypatch):
    """Make a backend whose model says given ids, then `<end_of_turn>`, whatever it is asked."""

    def make(ids: list[int], *, end: int = 106, **limits) -> LocalBackend:
        backend = make_backend(**limits)
        text_model = backend.engine._text_model
        steps = iter([])

        def logits(vectors: torch.Tensor) -> torch.Tensor:
            nonlocal steps
            (sequence,) = backend.engine._decoding
            if not sequence.generated:  # a new answer begins
                steps = iter([*ids, end])
            row = torch.zeros(len(vectors), text_model.vocab_size)
            row[:, next(steps)] = 50.0
            return row

        monkeypatch.setattr(text_model, "logits", logits)
        return backend

    return make
