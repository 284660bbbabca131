"""`verify`: two models, the same prompts, and where they part.

The reference is loaded, read, written to the disk and let go of before the other one is loaded, so
a machine that holds one of them can compare both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gemma3vl_app.addresses import is_address
from gemma3vl_app.engine.memory import give_back
from gemma3vl_app.errors import VerificationError
from gemma3vl_app.faithfulness.bounds import SAME, SAME_DIFFERENCE, Bounds
from gemma3vl_app.faithfulness.measuring import Place, RelativeError, agreement, compare_logits
from gemma3vl_app.faithfulness.prompts import Prompt, built_in, own_prompts
from gemma3vl_app.faithfulness.reader import Reader, Reading, compared, load_reference
from gemma3vl_app.faithfulness.record import Record
from gemma3vl_app.faithfulness.results import (
    Begins,
    Compared,
    Deep,
    LayerError,
    PromptAgreement,
    Verification,
    joined,
)
from gemma3vl_app.faithfulness.weights import compare_weights
from gemma3vl_app.generation import Progress, Report
from gemma3vl_app.loading.sources import check_folder
from gemma3vl_app.planning import check_weights
from gemma3vl_app.prompting.format import PromptFormat
from gemma3vl_app.prompting.tokenizer import TextTokenizer

FEATURES_DIFFER = 1e-4  # relative error from which on picture features are not the same
LAYERS_DIFFER = 1e-5  # and outputs of layers, of which each adds a little of its own

Vocabulary = tuple[TextTokenizer, PromptFormat, int]  # and the rows of logits


@dataclass(frozen=True, kw_only=True)
class Read:
    """What is kept of the reference in memory: no part of the model."""

    model: Compared
    prompts: tuple[Prompt, ...]
    tokenizer: TextTokenizer
    format: PromptFormat
    rows: int  # V


def verify(
    a: str | Path,
    b: str | Path,
    *,
    weights: str = "fp32",
    weights_b: str | None = None,
    bounds: Bounds | None = None,
    pictures: str | Path | None = None,
    prompts: str | Path | None = None,
    deep: bool = False,
    revision: str | None = None,
    revision_b: str | None = None,
    progress: Report | None = None,
) -> Verification:
    """Compare model `b` with the reference `a`, both computed by transformers' own modules.

    Either is a name of the catalog, a hub id, a folder or a GGUF file. `weights` is the form that
    both are loaded in, `weights_b` another one for `b`. `bounds` are what `exceeded` is judged by;
    without, the numbers must be the same but for rounding. `pictures` (a folder) and `prompts` (a
    file) replace the built-in ones, see `own_prompts`. `deep` also compares every layer's output
    and every stored tensor. `revision` and `revision_b` are of the hub. Raises `LoadError`, and
    `VerificationError` where the two cannot be compared.
    """
    sources = (local_source(a), local_source(b))
    check_weights(weights)
    check_weights(weights_b or weights)
    report = progress or (lambda step: None)
    own = own_prompts(prompts, pictures)  # their faults come up before a model is loaded
    with Record() as record:
        first = _record(
            *(sources[0], weights, revision, record, own),
            deep=deep,
            report=report,
        )
        give_back()  # the first model, before there is a second
        found = _compare(
            first, record, sources[1], weights_b or weights, revision_b, deep=deep, report=report
        )
        give_back()
    if deep and found.deep is not None:
        different, unread = compare_weights(
            *sources, revisions=(revision, revision_b), report=report
        )
        found = replace(found, deep=replace(found.deep, weights=different, unread=unread))
    chosen = bounds if bounds is not None and bounds.are_given else SAME
    return replace(found, exceeded=chosen.exceeded(found.total), bounds=chosen.why)


def local_source(source: str | Path) -> str:
    """Return a source as text; raises `VerificationError` for one that a server has.

    A folder without weights that can be loaded is a `LoadError` here, before another one is loaded.
    """
    if not isinstance(source, Path) and is_address(source):
        raise VerificationError(
            f"{source} is a server's address: it does not tell whole distributions. "
            "Name a model that can be loaded here."
        )
    check_folder(source)
    return str(source)


def prompts_for(reader: Reader, own: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """Return what a model is asked: a person's `own` prompts, or else the built-in ones."""
    if not own:
        return built_in(sees=reader.sees, window_tokens=reader.window_tokens)
    if not reader.sees and any(prompt.conversation.pictures for prompt in own):
        raise VerificationError("The model takes no pictures; leave the folder of pictures out.")
    return own


def _record(
    source: str,
    weights: str,
    revision: str | None,
    record: Record,
    own: tuple[Prompt, ...],
    *,
    deep: bool,
    report: Report,
) -> Read:
    """Load the reference and write what it computes into `record`; the model ends with the call."""
    loaded = load_reference(source, weights=weights, revision=revision, progress=report)
    reader = Reader(loaded)
    prompts = prompts_for(reader, own)
    read_all(reader, prompts, record, loaded.name, report, deep=deep)
    return Read(
        model=compared(source, loaded),
        prompts=prompts,
        tokenizer=reader.tokenizer,
        format=reader.format,
        rows=reader.rows,
    )


def read_all(
    reader: Reader,
    prompts: Iterable[Prompt],
    record: Record,
    name: str,
    report: Report,
    *,
    deep: bool = False,
) -> None:
    """Read each prompt, with the greedy answer, and add what comes of it to `record`."""
    for prompt in _told(prompts, name, report):
        record.add(reader.read(reader.prepare(prompt), deep=deep))


def _compare(
    first: Read,
    record: Record,
    source: str,
    weights: str,
    revision: str | None,
    *,
    deep: bool,
    report: Report,
) -> Verification:
    """Load the other model and compare what it computes with the record."""
    loaded = load_reference(source, weights=weights, revision=revision, progress=report)
    reader = Reader(loaded, first.tokenizer)
    columns, notes = common_columns(
        (first.tokenizer, first.format, first.rows), (reader.tokenizer, reader.format, reader.rows)
    )
    errors: dict[str, RelativeError] = {}
    prompts = []
    for number, prompt in enumerate(_told(first.prompts, loaded.name, report)):
        expected = record[number]
        prepared = reader.prepare(prompt)
        if prepared.ids.tolist() != expected.prompt.ids.tolist():
            raise VerificationError(
                f"The models are given different tokens for {prompt.name!r}: "
                f"{len(expected.prompt):,} and {len(prepared):,}. Their tokenizers or picture "
                "settings are not the same; compare tokenizer.json and preprocessor_config.json."
            )
        found = reader.read(prepared, expected.answer_ids, deep=deep)
        prompts.append(_prompt_agreement(prompt, expected, found, columns, reader.tokenizer))
        _add_layers(errors, expected, found)
    if first.format != reader.format:
        notes.append("The two prepare pictures or control tokens by other settings.")
    return Verification(
        a=first.model,
        b=compared(source, loaded),
        prompts=tuple(prompts),
        total=joined([each.agreement for each in prompts]),
        begins=where_it_begins(prompts),
        exceeded=(),
        bounds="",
        notes=tuple(notes),
        deep=_deep(errors) if deep else None,
    )


def _told(prompts: Iterable[Prompt], name: str, report: Report) -> Iterable[Prompt]:
    """Yield prompts, and report each."""
    listed = tuple(prompts)
    for done, prompt in enumerate(listed):
        message = f"{name} reads {prompt.name!r}"
        report(Progress("verify", done, len(listed), "prompts", message))
        yield prompt


def _prompt_agreement(
    prompt: Prompt, expected: Reading, found: Reading, columns: int, tokenizer: TextTokenizer
) -> PromptAgreement:
    rows = compare_logits(expected.logits[:, :columns], found.logits[:, :columns])
    ids = expected.ids
    place = Place(prompt.name, list(expected.positions), ids, len(expected.prompt))
    return PromptAgreement(
        name=prompt.name,
        crops=prompt.crops,
        pictures=len(expected.prompt.images),
        tokens=len(ids),
        agreement=agreement(rows, place, tokenizer),
        features_error=features_error(
            [expected.features[image.key] for image in expected.prompt.images],
            [found.features[image.key] for image in found.prompt.images],
        ),
    )


def features_error(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float | None:
    """Return the relative error of pictures' features (T, D), None where there are no pictures."""
    error = RelativeError()
    for one, other in zip(expected, found, strict=True):
        error.add(one, other)
    return error.value if expected else None


def where_it_begins(prompts: Iterable[PromptAgreement]) -> Begins:
    """Return where models part: in the pictures' features, after them, or in both.

    Prompts without pictures say whether the language model differs by itself; where features are
    the same and answers are not, it is the language model, too.
    """
    listed = tuple(prompts)
    features = any((each.features_error or 0.0) > FEATURES_DIFFER for each in listed)
    apart = [each for each in listed if each.agreement.max_difference > SAME_DIFFERENCE]
    text = any(not each.pictures for each in apart)
    if features:
        return "both" if text else "picture features"
    return "language model" if apart else "nowhere"


def common_columns(a: Vocabulary, b: Vocabulary) -> tuple[int, list[str]]:
    """Return how many tokens both models know, and what to say of it.

    More rows in one of the two are let pass where they stand for no token, since formats pad
    vocabularies otherwise. Raises `VerificationError` where the models cannot be compared.
    """
    (tokenizer_a, format_a, rows_a), (tokenizer_b, format_b, rows_b) = a, b
    if (format_a.image_tokens > 0) != (format_b.image_tokens > 0):
        raise VerificationError(
            "Only one of the two models takes pictures, so they cannot be compared. "
            "Of a GGUF file, the mmproj file has to lie beside it."
        )
    if not tokenizer_a.same_ids(tokenizer_b):
        raise VerificationError(
            "The models' tokenizers differ: the same id is not the same token in both. "
            "They are different models, or one has another model's tokenizer.json."
        )
    columns, longest = sorted((rows_a, rows_b))
    placeholders = {format_a.soft, format_b.soft}
    lost = [
        id
        for id in range(columns, longest)
        if id not in placeholders
        and (tokenizer_a.raw.id_to_token(id) or tokenizer_b.raw.id_to_token(id))
    ]
    if lost:
        raise VerificationError(
            f"The models have vocabularies of different sizes, {rows_a:,} and {rows_b:,} tokens, "
            f"and {len(lost):,} of the tokens that one of them lacks are in use. "
            "They cannot be compared."
        )
    if columns == longest:
        return columns, []
    more = longest - columns
    return columns, [f"One has {more:,} more rows of logits, which stand for no token; left out."]


# --- layer by layer ---


def _add_layers(errors: dict[str, RelativeError], expected: Reading, found: Reading) -> None:
    for name in sorted(expected.layers.keys() | found.layers.keys()):
        outputs, other = expected.layers.get(name), found.layers.get(name)
        if outputs is None or other is None or outputs.shape != other.shape:
            raise VerificationError(
                f"The models are built differently ({name}), so that their layers cannot be "
                "compared one by one. Leave deep=True out."
            )
        errors.setdefault(name, RelativeError()).add(outputs, other)
    if expected.features:
        # The projector comes after the tower, which is before the language model.
        error = errors.setdefault("model.multi_modal_projector", RelativeError())
        for key_a, key_b in zip(expected.features, found.features, strict=True):
            error.add(expected.features[key_a], found.features[key_b])


def _deep(errors: dict[str, RelativeError]) -> Deep:
    """Return the layers in the order they compute: tower, projector, language model."""

    def rank(name: str) -> int:
        return 0 if "vision_tower" in name else 1 if "projector" in name else 2

    layers: list[LayerError] = []
    before: float | None = None
    for name in sorted(errors, key=rank):
        error = errors[name].value
        if name.endswith("embed_tokens"):
            before = None  # what is computed before it is of pictures
        growth = error / before if before else None
        layers.append(LayerError(name=name, error=error, growth=growth))
        before = error
    first = next((each.name for each in layers if each.error > LAYERS_DIFFER), "")
    return Deep(layers=tuple(layers), first=first, weights=(), unread=0)
